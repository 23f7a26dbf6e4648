"""Types of the extension module; megagpt/kernels/attention_native.py says what the numbers mean."""

# is_bfloat16, threads, B, N, N_key, S, D, scale, address of starts or 0
_Call = tuple[bool, int, int, int, int, int, int, float, int]
# address, strides of B, N and S
_Tensor = tuple[int, ...]

def is_usable() -> bool: ...
def forward(call: _Call, query: _Tensor, key: _Tensor, value: _Tensor, out: _Tensor, log_sums: int, /) -> None: ...
def backward(
    call: _Call,
    query: _Tensor,
    key: _Tensor,
    value: _Tensor,
    out: _Tensor,
    grad: _Tensor,
    log_sums: int,
    query_grad: _Tensor,
    key_grad: _Tensor,
    value_grad: _Tensor,
    /,
) -> None: ...
