# SPDX-License-Identifier: Apache-2.0
"""Search for hyper-parameters with Optuna: ask, train, tell."""
