"""Differential privacy: what a release with Gaussian noise costs, and how much noise an epsilon asks for."""
