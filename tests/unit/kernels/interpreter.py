"""Triton 3.6's interpreter where it fails: loops up to a kernel's own numbers, and products of bf16."""

from contextlib import suppress

_MARK = "_is_mended"


def mend_interpreter() -> None:
    """Mends it for this process, once; nothing where Triton is not installed.

    runtime/interpreter.py, _patch_lang_tensor: `int` of an array of one element, which NumPy 2.4 refuses.
    runtime/interpreter.py, create_dot: bf16 is held as the bits of 16-bit integers, which it multiplies as such.
    """
    with suppress(ImportError):
        from triton.runtime import interpreter

        if not hasattr(interpreter, _MARK):
            setattr(interpreter, _MARK, True)
            _mend_loops(interpreter)
            _mend_products(interpreter)


def _mend_loops(interpreter) -> None:
    patch = interpreter._patch_lang_tensor

    def patch_and_count(tensor, scope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_count


def _mend_products(interpreter) -> None:
    multiply = interpreter.InterpreterBuilder.create_dot
    language = interpreter.tl

    def widened(handle):
        if handle.dtype.scalar != language.bfloat16:
            return handle
        values = (handle.data.astype("uint32") << 16).view("float32")
        return interpreter.TensorHandle(values, language.float32)

    def multiply_widened(self, a, b, d, input_precision, max_num_imprecise_acc):
        return multiply(self, widened(a), widened(b), d, input_precision, max_num_imprecise_acc)

    interpreter.InterpreterBuilder.create_dot = multiply_widened
