"""Layout of a solver table's row: 32 words of the state's width, one 128-byte line in float32.

A row describes one network evaluation::

    x0  = clip(p*x + q*F)                        F = network output after guidance
    x'  = a . [x, x0, F, z, h1, h2, h3, h4]      z = fresh normal noise
    h_slot' = b . [x, x0, F, z, h1, h2, h3, h4]  old values on the right

Integer words hold the bit pattern of a signed integer of the word's own width: read them through
``rows.view(torch.int32)`` (float32 rows) or ``rows.view(torch.int64)`` (float64 rows).
"""

ROW_WORDS = 32

P = 0  # x0 = P * x + Q * F
Q = 1
GUIDANCE = 2  # classifier-free weight; 1 = no guidance
CLIP = 3  # bound of x0, inf = none
NEXT_SCALE = 4  # the next network input is NEXT_SCALE * x'
SLOT = 5  # integer: history slot written by this row, -1 = none
NOISE_STEP = 6  # integer: `step` of the noise counter
NEXT = 7  # integer: index in the pool of the row that follows
A = 8  # 8..15: coefficients of x'
B = 16  # 16..23: coefficients of h_slot'
LOG2_STD_MIN = 24  # learned variance: log2 of the standard deviation at V = -1
LOG2_STD_MAX = 25  # ... and at V = +1
INPUT_SCALE = 26  # scale of this row's own network input, for a loop that rebuilds it
# What a loop reads before the step, to change its copy of the row by a scalar of each sample; the step ignores it.
THRESHOLD_TAIL = 27  # dynamic threshold of x0: the share of its elements above it
THRESHOLD_MAX = 28  # ... and its largest value, 0 = none
RESCALE = 29  # guidance rescale's phi, 0 = none
LANGEVIN = 30  # step size from norms: 0 none, 1 of each sample, 2 of the batch's means
GRADIENT = 31  # classifier guidance: F grows by this times the gradient of log p(label | x)

# Positions within a coefficient vector `a` or `b`.
X, X0, F, Z, H = 0, 1, 2, 3, 4
MAX_SLOTS = 4
