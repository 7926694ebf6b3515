"""Small simulations to train on and to test with, solved on the CPU in seconds (extra `sim` for the spectral ones)."""

from .periodic import gray_scott, shear_flow, solve_gray_scott, solve_shear_flow

__all__ = ["gray_scott", "shear_flow", "solve_gray_scott", "solve_shear_flow"]
