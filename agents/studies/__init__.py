# SPDX-License-Identifier: Apache-2.0
"""Many runs that answer one question: ablations, generalisation, several seeds of one agent."""
