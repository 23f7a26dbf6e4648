"""Which part of a training step an operator or a device kernel belongs to, told by its name.

In: names as torch's profiler writes them. Out: a Group. Pure functions, for `--profile` and for benchmarks. Names that
nothing here knows are Group.OTHER: a breakdown shows them instead of guessing.
"""

from enum import Enum


class Group(Enum):
    """The parts of a step's time, as a person reads them. Their order is that of tables."""

    GEMM = "matrix multiplications"
    ATTENTION = "attention"
    POINTWISE = "pointwise, norms, softmax"
    COPY = "copies, casts, fills"
    OPTIMIZER = "optimizer"
    COMMUNICATION = "communication"
    DATA = "data"
    OTHER = "other kernels"
    HOST = "idle and host"  # the device computes nothing; on the CPU, Python and the cost of calling operators


# kernels of cuBLAS, CUTLASS, Triton's and Inductor's templates; cuDNN's and flash-attn's attention come before them
_GEMM_KERNELS = ("gemm", "cutlass", "nvjet", "cublas", "xmma", "gemv", "splitkreduce", "triton_tem", "triton_mm")
_ATTENTION_KERNELS = ("flash", "fmha", "attention", "attn", "sdpa")
_COMMUNICATION_KERNELS = ("nccl", "all_reduce", "allreduce", "all_gather", "reduce_scatter")
_OPTIMIZER_KERNELS = ("multi_tensor_apply", "multitensor", "adam")
_COPY_KERNELS = ("memcpy", "memset", "copy", "catarray", "fillfunctor")
_POINTWISE_KERNELS = (
    *("elementwise", "reduce", "norm", "gelu", "softmax", "dropout", "embedding", "index", "gather", "scatter"),
    *("cross_entropy", "triton_", "cunn_", "gammabeta", "distribution", "bernoulli", "residual", "bias", "where"),
    *("scan", "arange", "amax", "head_gradient", "compute_grad_weight", "sort", "radix", "krn_partial"),
)

_GEMM_OPERATORS = frozenset(
    {"mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "linear_backward", "mv", "addmv", "dot", "einsum"}
    | {"_scaled_mm", "_addmm_activation", "_int_mm", "_grouped_mm", "_scaled_grouped_mm", "mkldnn_linear"}
)
_ATTENTION_OPERATORS = ("scaled_dot_product", "flash_attention", "efficient_attention", "cudnn_attention", "flex_att")
_OPTIMIZER_OPERATORS = ("_fused_adam", "_fused_sgd", "_foreach_")
_COPY_OPERATORS = frozenset(
    {"copy_", "_to_copy", "to", "contiguous", "clone", "cat", "stack", "fill_", "zero_", "zeros", "zeros_like"}
    | {
        "_local_scalar_dense",
        "item",
        "flatten_dense_tensors",
        "unflatten_dense_tensors",
        "constant_pad_nd",
        "new_zeros",
    }
)
# what computes nothing: another view of the same tensor, or memory for a new one
_VIEW_OPERATORS = frozenset(
    {"view", "_unsafe_view", "reshape", "_reshape_alias", "as_strided", "transpose", "t", "permute", "expand", "slice"}
    | {"select", "squeeze", "unsqueeze", "detach", "detach_", "unbind", "split", "chunk", "narrow", "alias", "flatten"}
    | {
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "resize_",
        "expand_as",
        "view_as",
        "unflatten",
        "lift_fresh",
    }
)
# ranges that torch.compile opens around code of its own: only pointwise regions are compiled here
_COMPILED = ("torch-compiled region", "compiledfxgraph", "compiledfunction", "## call")
_COMMUNICATION_OPERATORS = ("c10d::", "gloo:", "nccl:", "record_param_comms", "ncclx:")


def operator_group(name: str) -> Group:
    """The group of an operator as it runs on the host, such as `aten::mm` or `c10d::allreduce_`.

    Group.HOST for what computes nothing itself: autograd's nodes, functions written in Python, annotations, views.
    """
    lower = name.lower()
    if lower.startswith(_COMMUNICATION_OPERATORS):
        return Group.COMMUNICATION
    if any(word in lower for word in _COMPILED):
        return Group.POINTWISE
    library, _, operator = lower.partition("::")
    if not operator or library in ("autograd", "torch") or operator in _VIEW_OPERATORS:
        return Group.HOST
    if any(word in operator for word in _ATTENTION_OPERATORS):
        return Group.ATTENTION
    if operator.startswith(_OPTIMIZER_OPERATORS):
        return Group.OPTIMIZER
    if operator in _GEMM_OPERATORS:
        return Group.GEMM
    if operator in _COPY_OPERATORS:
        return Group.COPY
    return Group.POINTWISE if library == "aten" else _custom_operator_group(operator)


def kernel_group(name: str, operator: str | None = None) -> Group:
    """The group of what a device runs: a kernel, a copy or a fill.

    `operator`: the operator that launched it, where that is known. It tells attention made of plain kernels, and
    decides where the kernel's own name says nothing.
    """
    lower = name.lower()
    if any(word in lower for word in _COMMUNICATION_KERNELS):
        return Group.COMMUNICATION
    launched_by = Group.HOST if operator is None else operator_group(operator)
    if launched_by in (Group.ATTENTION, Group.OPTIMIZER):
        return launched_by
    for words, group in (
        (_ATTENTION_KERNELS, Group.ATTENTION),
        (_GEMM_KERNELS, Group.GEMM),
        (_OPTIMIZER_KERNELS, Group.OPTIMIZER),
        (_COPY_KERNELS, Group.COPY),
        (_POINTWISE_KERNELS, Group.POINTWISE),
    ):
        if any(word in lower for word in words):
            return group
    return Group.OTHER if launched_by is Group.HOST else launched_by


def _custom_operator_group(operator: str) -> Group:
    """Of operators that do not come with torch, by words that their authors would use."""
    for words, group in (
        (("attention", "attn"), Group.ATTENTION),
        (("adam", "optimizer"), Group.OPTIMIZER),
        (("linear", "gemm", "matmul"), Group.GEMM),
        (("norm", "gelu", "softmax", "cross_entropy", "dropout", "residual", "bias"), Group.POINTWISE),
    ):
        if any(word in operator for word in words):
            return group
    return Group.OTHER
