"""Foundation models: registry, weights and inference."""

# SPDX-License-Identifier: BSD-3-Clause
