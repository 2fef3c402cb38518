"""The activations of `weights.ACTIVATIONS` inside a kernel, and their derivatives. Knows Triton only.

An adapter's activation is a number in its record, so that one launch can hold adapters with different ones: the branch
is taken by a whole tile at once and costs nothing beside the products. The numbers are those of `records.CODES`; 0 is
the identity.
"""

import triton
import triton.language as tl

_SQRT_HALF = tl.constexpr(0.7071067811865476)
_INV_SQRT_2PI = tl.constexpr(0.3989422804014327)
_SQRT_2_OVER_PI = tl.constexpr(0.7978845608028654)
_CUBIC = tl.constexpr(0.044715)


@triton.jit
def tanh(x):
    # Through the exponential of a negative number, which never overflows.
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def activate(x, code):
    """`act(x)` for fp32 x of any shape; `code` is a scalar, one of `records.CODES`."""
    if code == 1:
        x = 0.5 * x * (1.0 + tl.erf(x * _SQRT_HALF))
    elif code == 2:
        x = 0.5 * x * (1.0 + tanh((x + x * x * x * _CUBIC) * _SQRT_2_OVER_PI))
    elif code == 3:
        x = tl.maximum(x, 0.0)
    elif code == 4:
        x = x * tl.sigmoid(x)
    elif code == 5:
        x = tanh(x)
    return x


@triton.jit
def derivative(x, code):
    """`act'(x)` for fp32 x of any shape; 0 at 0 for relu, as in torch."""
    slope = tl.full(x.shape, 1.0, tl.float32)
    if code == 1:
        slope = 0.5 * (1.0 + tl.erf(x * _SQRT_HALF)) + x * _INV_SQRT_2PI * tl.exp(-0.5 * x * x)
    elif code == 2:
        t = tanh((x + x * x * x * _CUBIC) * _SQRT_2_OVER_PI)
        slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * _SQRT_2_OVER_PI * (1.0 + x * x * _CUBIC * 3.0)
    elif code == 3:
        slope = tl.where(x > 0, 1.0, 0.0)
    elif code == 4:
        s = tl.sigmoid(x)
        slope = s * (1.0 + x * (1.0 - s))
    elif code == 5:
        t = tanh(x)
        slope = 1.0 - t * t
    return slope
