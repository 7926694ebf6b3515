"""Write the simulations that the recipes in examples/configs are for.

    python examples/simulate.py runs/simulated                 # configs/tiny.yaml: four scenarios, a minute
    python examples/simulate.py runs/nano/data --recipe nano   # configs/nano.yaml: nineteen, an hour, 9 GB
    python examples/simulate.py runs/simulated-tiny --tiny     # does it run?

What is there already is left alone, so the same command goes on after a stop; made with other parameters it is refused.
"""

import argparse

from walrus_hf.data.simulate import write_simulations

# name -> parameters of each variant, which becomes a source of its own
TINY = {
    "wave": [{"grid": (64, 48)}],
    "shear_flow": [{"grid": (64, 48)}],
    # Coarse volumes: frames half as far apart as usual, so that a cell's neighbourhood tells what comes next.
    "advection_diffusion_3d": [{"grid": (16, 16, 16), "dt": 0.015}],
    "turbulence_3d": [{"grid": (16, 16, 16), "dt": 0.025}],
}
PLANES, VOLUMES = ((64, 64), (64, 48), (48, 80)), ((16, 16, 16), (24, 16, 16), (20, 24, 16))
SMALLER = ((64, 64), (64, 48), (32, 40))
LAYERS = ((64, 32), (80, 32), (64, 48))
NANO = {
    "acoustic_scattering": (PLANES, {}, {"dt": 0.008}, {"dt": 0.013}),
    "acoustic_scattering_closed": (PLANES, {}, {"dt": 0.008}, {"dt": 0.013}),
    "advection_diffusion_3d": (VOLUMES, {}, {"diffusivity": 0.0008}, {"diffusivity": 0.003}),
    "burgers": (PLANES, {}, {"viscosity": 0.002}, {"viscosity": 0.006}),
    "euler_channel": (PLANES, {}, {"gamma": 1.3}, {"gamma": 1.6667}),
    "euler_layers_periodic": (SMALLER, {}, {"dt": 0.02, "gamma": 1.3}, {"dt": 0.03, "gamma": 1.6667}),
    "euler_layers_wall": (SMALLER, {}, {"dt": 0.02, "gamma": 1.3}, {"dt": 0.03, "gamma": 1.6667}),
    "euler_multi_quadrants_open": (PLANES, {}, {"gamma": 1.3}, {"gamma": 1.6667}),
    "euler_multi_quadrants_periodic": (PLANES, {}, {"gamma": 1.3}, {"gamma": 1.6667}),
    "euler_multi_quadrants_wall": (PLANES, {}, {"gamma": 1.3}, {"gamma": 1.6667}),
    "gray_scott": (PLANES, {}, {"dt": 7.0}, {"dt": 14.0}),
    "kolmogorov_flow": (PLANES, {}, {"viscosity": 0.0009}, {"viscosity": 0.003, "drag": 0.05}),
    "rayleigh_benard": (LAYERS, {}, {"dt": 0.2}, {"dt": 0.3}),
    "reaction_diffusion": (SMALLER, {}, {"dt": 0.2}, {"dt": 0.15, "diffusivity": 1e-3}),
    "shear_flow": (PLANES, {}, {"viscosity": 0.0004}, {"viscosity": 0.0015}),
    "swift_hohenberg": (SMALLER, {}, {"wavelength": 0.15}, {"dt": 0.8, "wavelength": 0.25}),
    "turbulence_2d": (SMALLER, {}, {"viscosity": 4e-4}, {"dt": 0.08, "viscosity": 1.5e-3}),
    "turbulence_3d": (VOLUMES, {}, {"viscosity": 0.0015}, {"viscosity": 0.004}),
    "wave": (PLANES, {}, {"dt": 0.007}, {"dt": 0.015}),
}
# The variants after these: more cells, and lines.
WIDER = {
    "acoustic_scattering": [{"grid": (112, 96), "dt": 0.009}],
    "burgers": [{"grid": (112, 128), "viscosity": 0.0025}, {"grid": (144,)}],
    "euler_layers_periodic": [{"grid": (96, 72), "dt": 0.018, "gamma": 1.55}],
    "euler_layers_wall": [{"grid": (80, 48), "dt": 0.018, "gamma": 1.35}],
    "euler_multi_quadrants_periodic": [{"grid": (112, 96), "gamma": 1.35}],
    "gray_scott": [{"grid": (128, 96), "dt": 9.0}],
    "kolmogorov_flow": [{"grid": (112, 128), "viscosity": 0.0014}],
    "shear_flow": [{"grid": (128, 96), "viscosity": 0.0006}],
    "turbulence_2d": [{"grid": (96, 112), "viscosity": 6e-4}],
    "wave": [{"grid": (128, 96), "dt": 0.011}, {"grid": (160,), "dt": 0.011}],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="folder: sources are OUTPUT/<name>, or OUTPUT/<variant>/<name>")
    parser.add_argument("--recipe", choices=("tiny", "nano"), default="tiny")
    parser.add_argument("--tiny", action="store_true", help="two short trajectories on small grids")
    arguments = parser.parse_args()
    if arguments.tiny:
        write("wave", arguments.output, {"train": 2}, 0, {"grid": (24, 16), "frames": 12})
    elif arguments.recipe == "tiny":
        for name, (parameters,) in TINY.items():
            write(name, arguments.output, {"train": 12, "valid": 2}, 0, parameters)
    else:
        for name, number, parameters in nano_variants():
            folder, counts = f"{arguments.output}/{number}", {"train": 16, "valid": 2, "test": 4}
            write(name, folder, counts, number, {"frames": 96, **parameters})


def nano_variants() -> list[tuple[str, int, dict]]:
    """Scenario, number of the variant, which is the seed too, and parameters of each source of configs/nano.yaml."""
    found = []
    for name, (grids, *settings) in NANO.items():
        variants = [{"grid": grid, **parameters} for grid, parameters in zip(grids, settings, strict=True)]
        found += [(name, number, parameters) for number, parameters in enumerate(variants + WIDER.get(name, []))]
    return found


def write(name: str, folder: str, counts: dict, seed: int, parameters: dict) -> None:
    for split, trajectories in counts.items():
        write_simulations(name, folder, trajectories, seed, split, skip_existing=True, progress=True, **parameters)


if __name__ == "__main__":
    main()
