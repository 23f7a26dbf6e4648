"""Names of kernels and operators, as torch's profiler writes them, and the part of a step that each belongs to."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from megagpt.training.profile_groups import Group, kernel_group, operator_group

_FLASH = (
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, false, false, cutlass::bfloat16_t>>"
)
_CUDNN = "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_7_64x64x128_4x1x1_kernel0_0"
_EFFICIENT = "fmha_cutlassB_bf16_aligned_64x64_k64_dropout_sm80(PyTorchMemEffAttention::AttentionBackwardKernel)"
_ADAM = "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<4>>"
_COPY = "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(TensorIteratorBase&)>"
_ADD = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>"
_NORM = "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float>"


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("nvjet_tst_256x128_64x4_1x2_h_bz_coopA_NTN", Group.GEMM),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1", Group.GEMM),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>", Group.GEMM),
        ("ampere_bf16_s16816gemm_bf16_128x256_ldg8_f2f_stages_64x3_nt", Group.GEMM),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>", Group.GEMM),
        (_FLASH, Group.ATTENTION),
        (_CUDNN, Group.ATTENTION),
        (_EFFICIENT, Group.ATTENTION),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<cutlass::half_t>", Group.ATTENTION),
        ("_attention_forward", Group.ATTENTION),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", Group.COMMUNICATION),
        ("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", Group.COMMUNICATION),
        (_ADAM, Group.OPTIMIZER),
        ("Memcpy DtoD (Device -> Device)", Group.COPY),
        ("Memset (Device)", Group.COPY),
        (_COPY, Group.COPY),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>", Group.COPY),
        (_ADD, Group.POINTWISE),
        (_NORM, Group.POINTWISE),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>", Group.POINTWISE),
        ("triton_red_fused_native_layer_norm_add_0", Group.POINTWISE),
        ("void at::native::(anonymous namespace)::cunn_SoftMaxForward<8, c10::BFloat16, float>", Group.POINTWISE),
        ("something_nobody_knows", Group.OTHER),
    ],
)
def test_kernels(name: str, group: Group) -> None:
    assert kernel_group(name) is group


def test_the_operator_decides_where_the_kernel_does_not() -> None:
    assert kernel_group(_COPY, "aten::_scaled_dot_product_attention_math") is Group.ATTENTION
    assert kernel_group(_ADD, "aten::_foreach_add_") is Group.OPTIMIZER
    assert kernel_group("something_nobody_knows", "aten::mm") is Group.GEMM
    assert kernel_group("something_nobody_knows", "aten::gelu") is Group.POINTWISE
    assert kernel_group("something_nobody_knows", "MyFunctionBackward") is Group.OTHER
    assert kernel_group("ncclDevKernel_Broadcast", "aten::copy_") is Group.COMMUNICATION


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("aten::addmm", Group.GEMM),
        ("aten::_scaled_mm", Group.GEMM),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", Group.ATTENTION),
        ("aten::_fused_adamw_", Group.OPTIMIZER),
        ("aten::_foreach_norm", Group.OPTIMIZER),
        ("aten::_to_copy", Group.COPY),
        ("aten::native_layer_norm", Group.POINTWISE),
        ("aten::exp_", Group.POINTWISE),
        ("Torch-Compiled Region: 0/0", Group.POINTWISE),
        ("c10d::_allgather_base_", Group.COMMUNICATION),
        ("gloo:all_reduce", Group.COMMUNICATION),
        ("record_param_comms", Group.COMMUNICATION),
        ("autograd::engine::evaluate_function: MmBackward0", Group.HOST),
        ("torch::autograd::AccumulateGrad", Group.HOST),
        ("aten::as_strided", Group.HOST),
        ("aten::empty_like", Group.HOST),
        ("megagpt::cpu_attention", Group.ATTENTION),
        ("megagpt::cpu_bias_gelu_backward", Group.POINTWISE),
        ("LinearWithGradAccumulationAndAsyncCommunication", Group.HOST),
        ("megagpt::adamw_step", Group.OPTIMIZER),
        ("flash_attn::_flash_attn_forward", Group.ATTENTION),
        ("torchao::_linear_f8", Group.GEMM),
        ("somebody::something", Group.OTHER),
    ],
)
def test_operators(name: str, group: Group) -> None:
    assert operator_group(name) is group


def test_what_torch_really_calls_its_operators() -> None:
    """The groups of all that a small step calls here; a renaming in torch would show as another group."""
    weight = torch.ones(16, 16, requires_grad=True)
    query = torch.ones(1, 2, 8, 16, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], fused=True)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        mixed = torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
        wide = torch.nn.functional.gelu(torch.nn.functional.layer_norm(mixed @ weight, (16,)))
        wide.to(torch.bfloat16).float().sum().backward()
        optimizer.step()
    names = {event.name for event in profiler.events()}
    by_group = {group: {name for name in names if operator_group(name) is group} for group in Group}
    assert "aten::mm" in by_group[Group.GEMM]
    assert any("flash" in name for name in by_group[Group.ATTENTION])
    assert {"aten::gelu", "aten::native_layer_norm", "aten::gelu_backward"} <= by_group[Group.POINTWISE]
    assert "aten::_fused_adamw_" in by_group[Group.OPTIMIZER]
    assert "aten::copy_" in by_group[Group.COPY]
    assert not by_group[Group.OTHER]
