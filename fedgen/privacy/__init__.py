"""Differential privacy: epsilon of a release with Gaussian noise, and the noise that an epsilon requires."""
