"""Small simulations to train on and to test with, solved on the CPU in seconds (extra `sim` for the spectral ones)."""

from .acoustics import acoustic_scattering, solve_acoustics
from .convection import rayleigh_benard, solve_rayleigh_benard
from .euler import euler_channel, euler_layers, euler_multi_quadrants, solve_euler
from .incompressible import kolmogorov_flow, solve_incompressible, turbulence_2d, turbulence_3d
from .patterns import reaction_diffusion, solve_reaction_diffusion, solve_swift_hohenberg, swift_hohenberg
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
    "euler_layers",
    "euler_multi_quadrants",
    "gray_scott",
    "kolmogorov_flow",
    "rayleigh_benard",
    "reaction_diffusion",
    "shear_flow",
    "solve_acoustics",
    "solve_advection_diffusion",
    "solve_burgers",
    "solve_euler",
    "solve_gray_scott",
    "solve_incompressible",
    "solve_rayleigh_benard",
    "solve_reaction_diffusion",
    "solve_shear_flow",
    "solve_swift_hohenberg",
    "solve_wave",
    "swift_hohenberg",
    "trajectory_seed",
    "turbulence_2d",
    "turbulence_3d",
    "wave",
    "write_simulations",
]
