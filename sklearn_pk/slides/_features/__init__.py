"""Bags of features: the store, and files of other tools."""

# SPDX-License-Identifier: BSD-3-Clause
