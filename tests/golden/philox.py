"""Random numbers as docs/random.md defines them: Philox4x32-10 in plain integers, held against the known answers published with it
(Random123), uniforms, and Box-Muller by numpy in double on them. Shared by the scripts that make the golden vectors.

    box_muller(uniforms64(words((seed, row, step, purpose, sample), count)))
"""
import numpy as np

MASK = 0xFFFFFFFF


def philox(counter, key):
    c, k0, k1 = list(counter), key & MASK, key >> 32
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k0, b & MASK, (a >> 32) ^ c[3] ^ k1, a & MASK]
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c


assert philox([0] * 4, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
assert philox([MASK] * 4, 2**64 - 1) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
assert philox([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], 0x299F31D0A4093822) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def words(at, count):
    seed, row, step, purpose, sample = at
    out = []
    for block in range(-(-count // 4)):
        out += philox([block, row & MASK, step, (row >> 32) & 0xFFFF | purpose << 16 | sample << 20], seed)
    return out[:count]


def uniforms32(w):
    return np.array([((x >> 9) + 0.5) * 2.0**-23 for x in w])


def uniforms64(w):
    return np.array([((high << 20 | low >> 12) + 0.5) * 2.0**-52 for high, low in zip(w[::2], w[1::2])])


def box_muller(u):
    # The turn is reduced before pi comes in, or the cosine would lose its digits where it vanishes.
    r, half = np.sqrt(-2 * np.log(u[::2])), np.rint(2 * u[1::2])
    x = 2 * u[1::2] - half
    sign = np.where(half % 2 == 0, 1.0, -1.0)
    return np.stack([r * sign * np.sin(np.pi * (0.5 - np.abs(x))), r * sign * np.sin(np.pi * x)], 1).reshape(-1)
