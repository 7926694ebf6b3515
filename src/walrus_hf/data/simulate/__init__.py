"""Small simulations to train on and to test with, solved on the CPU in seconds (extra `sim` for the spectral ones)."""

from .acoustics import acoustic_scattering, solve_acoustics
from .convection import rayleigh_benard, solve_rayleigh_benard
from .euler import euler_channel, euler_multi_quadrants, solve_euler
from .incompressible import kolmogorov_flow, solve_incompressible, turbulence_3d
from .periodic import gray_scott, shear_flow, solve_gray_scott, solve_shear_flow
from .spectral import (
    advection_diffusion_3d,
    burgers,
    solve_advection_diffusion,
    solve_burgers,
    solve_wave,
    wave,
)
from .writing import SIMULATIONS, trajectory_seed, write_simulations

__all__ = [
    "SIMULATIONS",
    "acoustic_scattering",
    "advection_diffusion_3d",
    "burgers",
    "euler_channel",
    "euler_multi_quadrants",
    "gray_scott",
    "kolmogorov_flow",
    "rayleigh_benard",
    "shear_flow",
    "solve_acoustics",
    "solve_advection_diffusion",
    "solve_burgers",
    "solve_euler",
    "solve_gray_scott",
    "solve_incompressible",
    "solve_rayleigh_benard",
    "solve_shear_flow",
    "solve_wave",
    "trajectory_seed",
    "turbulence_3d",
    "wave",
    "write_simulations",
]
