"""How far rounding may go. Sources: `docs/verdict.md`."""

# How far above the replay's own noise a replayed difference may lie and still count as collapsed.
COLLAPSE_MULTIPLE = 64.0
# How far above the native noise floor rounding may lie.
FLOOR_MULTIPLE = 4.0
# flash-attention's tests allow its kernels twice the error of the same-precision reference implementation.
KERNEL_MULTIPLE = 2.0
# How many of its own floors a module may lie from the reference's on the same arguments and still count as rounding.
OWN_MULTIPLE = 4.0
# How far above what storing its weights costs a feature may lie: the largest of thousands, each over few tokens.
STORED_MULTIPLE = 8.0
# Quantised kernels also round activations, about as coarsely as the weights: how much further their error may go.
QUANTISED_MULTIPLE = 8.0
FLOAT64_EPS = 2.0**-52
