"""Colours that stay apart for colour-blind readers."""

# SPDX-License-Identifier: BSD-3-Clause

# Okabe and Ito (2008); yellow is left out because lines of it vanish on white.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#666666"
