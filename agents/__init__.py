# SPDX-License-Identifier: Apache-2.0
"""Every controller: constants, learners, and the runs that train and evaluate them."""
