"""What the cases of all kernels share: sizes that kernels treat apart, and the list of ops.

It must not know any kernel.
"""

from library import widen

WIDTHS = (1, 31, 384, 768, 1000)
# up to what a warp holds in registers, and beyond, with and without 16-byte accesses
WIDE = (1024, 1032, 1029, 3072)
# a vector or two of a whole row, a vector a lane and one more, one vector less than what registers hold
VECTORS = (4, 8, 12, 40, 128, 132, 256, 264, 1016)
# every number of values that is left when all whole vectors are done, with none before them and with some
TAILS = range(2, 18)
OPS = {}


def op(function):
    OPS[function.__name__] = function
    return function


def ceil(a, b):
    return -(-a // b)


def read(buffer):
    return widen(buffer.dtype, buffer.values)
