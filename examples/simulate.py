"""Write the four small simulations of examples/configs/tiny.yaml: python examples/simulate.py runs/simulated"""

import sys

from walrus_hf.data.simulate import write_simulations

PARAMETERS = {
    "wave": {"grid": (64, 48)},
    "shear_flow": {"grid": (64, 48)},
    # Coarse volumes: frames half as far apart as usual, so that a cell's neighbourhood tells what comes next.
    "advection_diffusion_3d": {"grid": (16, 16, 16), "dt": 0.015},
    "turbulence_3d": {"grid": (16, 16, 16), "dt": 0.025},
}

if __name__ == "__main__":
    for name, parameters in PARAMETERS.items():
        for split, trajectories in (("train", 12), ("valid", 2)):
            write_simulations(name, sys.argv[1], trajectories, split=split, **parameters)
