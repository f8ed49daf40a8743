"""Open whole slide images: levels, pixel size, overview, fingerprint."""

# SPDX-License-Identifier: BSD-3-Clause
