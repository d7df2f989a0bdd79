"""What CPUs whose 8-bit products saturate mean for weights, whatever the runtime.

Two products of an unsigned and a signed byte are added in 16 bits there. Weights of seven bits
cannot reach the end.
"""

REACH = 64
"""Largest magnitude of a weight's code that cannot saturate.

255 * 64 * 2 = 32640, and 255 * 65 * 2 = 33150 > 32767.
"""

REASON = (
    "this CPU adds 8-bit products in 16 bits (no VNNI): weights use 7 of their 8 bits"
)
"""Why a backend carries schemes out with weights of reduced range, see ``Offer.narrowed``."""
