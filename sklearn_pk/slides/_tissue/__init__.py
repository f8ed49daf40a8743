"""Tissue masks, computed, read from files or drawn as annotations."""

# SPDX-License-Identifier: BSD-3-Clause
