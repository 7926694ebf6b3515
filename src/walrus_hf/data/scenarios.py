"""The 27 scenarios of the Walrus paper: where their data lie, what they hold, and how the model reads them.

19 scenarios of pretraining and 8 that the model never saw. Facts are those of the paper (arXiv 2511.15684, Tables 5 and
6) and of The Well's published metadata (https://github.com/PolymathicAI/the_well, `datasets/*/`); what neither of them
settles is marked at the entry. The files themselves have the last word: readers take grids and boundaries from them.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from . import flowbench

SPLITS = flowbench.SPLITS
WELL_LICENCE = "CC-BY-4.0"
XY, XYZ = ("x", "y"), ("x", "y", "z")


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One system of equations in one setting, and its data.

    Attributes:
        name: what sources are called; The Well's own names where it has the data.
        title: the paper's name.
        repository: data set on the Hub, or the DOI of data that lie elsewhere.
        stage: `"pretraining"` or `"downstream"` (never seen in pretraining).
        axes, grid: of the arrays, in this order.
        frames: frames of a trajectory, or the fewest and the most.
        trajectories: how many the paper counts; its splits and the Hub's may differ.
        fields, constant_fields: own name -> rank (0 scalar, 1 vector, 2 tensor).
        boundary_conditions: axis -> kind, or (low side, high side).
        licence: of the data.
        format: `"well"` and `"flowbench"` are read as they are, the others after a conversion.
        folder: of the files in the repository, with `{split}` where splits have folders.
        revision: commit of the repository; None is the newest.
        grid_type: The Well's.
        field_names: own name -> name in the vocabulary, where they differ.
        log_fields: own names of fields whose decimal logarithm the model reads.
        zero_fields: own names of fields that the model reads as zeros.
        exclude: parts of file names to leave out.
        time_stride: frames between those of an evaluation.
        added_fields: own names of fields that the published vocabulary lacks; a model needs them added, or they are
            left out of the data.
    """

    name: str
    title: str
    repository: str
    stage: str
    axes: tuple[str, ...]
    grid: tuple[int, ...]
    frames: int | tuple[int, int]
    trajectories: int
    fields: Mapping[str, int]
    boundary_conditions: Mapping[str, str | tuple[str, str]]
    licence: str
    constant_fields: Mapping[str, int] = dataclasses.field(default_factory=dict)
    format: str = "well"
    folder: str = "data/{split}"
    revision: str | None = None
    grid_type: str = "cartesian"
    field_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    log_fields: tuple[str, ...] = ()
    zero_fields: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    time_stride: int = 1
    added_fields: tuple[str, ...] = ()

    @property
    def batch_factor(self) -> float:
        """Share of a plane's batch size that pretraining gives to this scenario."""
        return 0.5 if len(self.axes) == 3 else 1.0

    @property
    def context_factor(self) -> float:
        """Share of a plane's input frames that pretraining gives to this scenario."""
        return 0.5 if len(self.axes) == 3 else 1.0

    @property
    def readable(self) -> bool:
        """Whether the published files can be read as they are."""
        return self.format in ("well", "flowbench")

    @property
    def converter(self) -> str | None:
        """The command that makes files of The Well out of the published ones, where it takes one."""
        return None if self.readable else f"walrus-hf data convert --format {self.format} FILE --output DIR"

    def url(self, split: str = "train") -> str:
        """Folder of a split's files on the Hub.

        FlowBench has no splits: the folder is the same for all, and `exclusions(split)` tells them apart.

        Raises:
            ValueError: no such split, or data that need a conversion.
        """
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
        require_readable(self)
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"hf://datasets/{self.repository}{revision}/{self.folder.format(split=split)}"

    def exclusions(self, split: str = "train") -> tuple[str, ...]:
        """Parts of file names to leave out of a split: outliers, and what belongs to the other splits.

        Raises:
            ValueError: no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
        return (*self.exclude, *(flowbench.parts_of_other_splits(split) if self.format == "flowbench" else ()))

    def processor_settings(self) -> dict[str, Any]:
        """Keyword arguments that make a `WalrusProcessor` read this scenario: `field_names` and `log_fields`."""
        return {"field_names": dict(self.field_names), "log_fields": list(self.log_fields)}


def find_scenario(name: str) -> Scenario:
    """The scenario of that name.

    Raises:
        ValueError: there is none; near names are suggested, also by the paper's titles.
    """
    if name in SCENARIOS:
        return SCENARIOS[name]
    known = {key.lower(): scenario.name for scenario in SCENARIOS.values() for key in (scenario.name, scenario.title)}
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    names = list(dict.fromkeys(known[key] for key in near))
    raise ValueError(
        f"unknown scenario {name!r}: expected one of {len(SCENARIOS)}"
        + (f", perhaps {' or '.join(map(repr, names))}" if names else "")
        + "; `walrus-hf data list` shows all"
    )


def require_readable(scenario: Scenario) -> None:
    """`ValueError` that names the conversion, where the published files of a scenario cannot be read as they are."""
    if not scenario.readable:
        raise ValueError(
            f"scenario {scenario.name!r}: expected files that can be read as they are, but those of "
            f"{scenario.repository} are {scenario.format}'s own; download them, run `{scenario.converter}`, and give "
            "DIR as the source"
        )


def _well(name: str, title: str, stage: str = "pretraining", **facts: Any) -> Scenario:
    return Scenario(name, title, f"polymathic-ai/{name}", stage, licence=WELL_LICENCE, **facts)


def _acoustic(kind: str, title: str, frames: int, trajectories: int) -> Scenario:
    # The cards say: open in y, reflecting in x. The published generator has a wall at the low and an open side at the
    # high end of both axes.
    return _well(
        f"acoustic_scattering_{kind}", title, axes=XY, grid=(256, 256), frames=frames, trajectories=trajectories,
        fields={"pressure": 0, "velocity": 1}, constant_fields={"density": 0, "speed_of_sound": 0},
        boundary_conditions={"x": "wall", "y": "open"},
        field_names={"density": "zeros_like_density"}, zero_fields=("density",),
    )  # fmt: skip


def _euler(name: str, title: str, kind: str) -> Scenario:
    return _well(
        name, title, axes=XY, grid=(512, 512), frames=101, trajectories=5000,
        fields={"density": 0, "energy": 0, "pressure": 0, "momentum": 1}, boundary_conditions={"x": kind, "y": kind},
    )  # fmt: skip


def _flowbench(family: str, title: str, stage: str, trajectories: int, exclude: tuple[str, ...] = ()) -> Scenario:
    # The paper names no boundary kinds; see flowbench.REGION for these. The Hub's newest commit holds 1024 x 256 only.
    # This is the last commit with 512 x 128 whose full id is known; two later ones (November 2024) corrected the data
    # and added the geometries.
    return Scenario(
        f"flowbench_fpo_{family}", title, "BGLab/FlowBench", stage, XY, (512, 128), 242, trajectories,
        fields={"velocity": 1, "pressure": 0}, boundary_conditions={"x": "open", "y": "open"},
        licence=flowbench.LICENCE, format="flowbench", folder=f"FPO_NS_2D_512x128/{family}",
        revision="85fdd0c1f38ed4c0b1d358898ad5aff14e1f8691", exclude=exclude,
    )  # fmt: skip


def _pdebench(kind: str, title: str, cells: int, trajectories: int) -> Scenario:
    # The files 3D_CFD_{Turb,Rand}_M1.0_Eta1e-08_Zeta1e-08_periodic_Train.hdf5. The licence was not looked up at DaRUS.
    return Scenario(
        f"pdebench_cns_3d_{kind}", title, "doi:10.18419/darus-2986", "downstream", XYZ, (cells,) * 3, 21, trajectories,
        fields={"density": 0, "pressure": 0, "velocity": 1}, boundary_conditions=dict.fromkeys(XYZ, "periodic"),
        licence="CC-BY-4.0", format="pdebench",
    )  # fmt: skip


_ALL = (
    # Pretraining, 14 in 2D
    _acoustic("discontinuous", "Discontinuous", 102, 2000),
    _acoustic("inclusions", "Inclusions", 102, 4000),
    _acoustic("maze", "Maze", 202, 2000),
    _well(
        # 45 parameter sets of 5 trajectories each, says the card: 225.
        "active_matter", "Active Matter", axes=XY, grid=(256, 256), frames=81, trajectories=360,
        fields={"concentration": 0, "velocity": 1, "D": 2, "E": 2},
        boundary_conditions={"x": "periodic", "y": "periodic"},
    ),
    _euler("euler_multi_quadrants_periodicBC", "MultiQuadrantsP", "periodic"),
    _euler("euler_multi_quadrants_openBC", "MultiQuadrantsO", "open"),
    _well(
        "gray_scott_reaction_diffusion", "Gray-Scott", axes=XY, grid=(128, 128), frames=1001, trajectories=1200,
        fields={"A": 0, "B": 0}, boundary_conditions={"x": "periodic", "y": "periodic"},
    ),
    _well(
        # Sides: the file has masks x_open_neumann, y_open_neumann and xy_wall, the staircase. That the staircase covers
        # all of the low side of y is concluded from the geometry.
        "helmholtz_staircase", "Staircase", axes=XY, grid=(1024, 256), frames=50, trajectories=512,
        fields={"pressure_re": 0, "pressure_im": 0}, constant_fields={"mask": 0},
        boundary_conditions={"x": "open", "y": ("wall", "open")},
    ),
    _well(
        # Metadata: open and periodic; that the poles are the open sides is concluded from the geometry.
        "planetswe", "PlanetSWE", axes=("theta", "phi"), grid=(256, 512), frames=1008, trajectories=120,
        fields={"height": 0, "velocity": 1}, boundary_conditions={"theta": "open", "phi": "periodic"},
        grid_type="equiangular",
    ),
    _well(
        "rayleigh_benard", "Rayleigh-Benard", axes=XY, grid=(512, 128), frames=200, trajectories=1750,
        fields={"buoyancy": 0, "pressure": 0, "velocity": 1}, boundary_conditions={"x": "periodic", "y": "wall"},
    ),
    _well(
        # 256 x 512 as in the paper; older metadata say 128 x 256.
        "shear_flow", "Shear Flow", axes=XY, grid=(256, 512), frames=200, trajectories=1120,
        fields={"tracer": 0, "pressure": 0, "velocity": 1}, boundary_conditions={"x": "periodic", "y": "periodic"},
    ),
    _well(
        "turbulent_radiative_layer_2D", "TRL (2D)", axes=XY, grid=(128, 384), frames=101, trajectories=90,
        fields={"density": 0, "pressure": 0, "velocity": 1}, boundary_conditions={"x": "periodic", "y": "open"},
    ),
    _well(
        # Its card calls the data deprecated since, for errors in their processing. Walrus was trained on it.
        "viscoelastic_instability", "Viscoelastics", axes=XY, grid=(512, 512), frames=(20, 60), trajectories=260,
        fields={"pressure": 0, "c_zz": 0, "velocity": 1, "C": 2},
        boundary_conditions={"x": "periodic", "y": "wall"},
    ),
    _flowbench("harmonics", "FBHarmonics", "pretraining", 400, exclude=("Re_614.npz",)),
    # Pretraining, 5 in 3D
    _well(
        "MHD_64", "MHD (3D)", axes=XYZ, grid=(64, 64, 64), frames=100, trajectories=100,
        fields={"density": 0, "magnetic_field": 1, "velocity": 1},
        boundary_conditions=dict.fromkeys(XYZ, "periodic"),
    ),
    _well(
        # 120 frames as in the paper; older metadata say 119.
        "rayleigh_taylor_instability", "RT Instability (3D)", axes=XYZ, grid=(128, 128, 128), frames=120,
        trajectories=45, fields={"density": 0, "velocity": 1},
        boundary_conditions={"x": "periodic", "y": "periodic", "z": "wall"},
    ),
    _well(
        # 260 as on the card and as its 754 GB hold; the paper says 1000.
        "supernova_explosion_128", "Supernova (3D)", axes=XYZ, grid=(128, 128, 128), frames=59, trajectories=260,
        fields={"density": 0, "pressure": 0, "temperature": 0, "velocity": 1},
        boundary_conditions=dict.fromkeys(XYZ, "open"), log_fields=("density", "temperature"),
    ),
    _well(
        "turbulence_gravity_cooling", "TGC (3D)", axes=XYZ, grid=(64, 64, 64), frames=50, trajectories=2700,
        fields={"density": 0, "pressure": 0, "temperature": 0, "velocity": 1},
        boundary_conditions=dict.fromkeys(XYZ, "open"), log_fields=("density", "temperature"),
    ),
    _well(
        # The paper takes the logarithm of density and temperature; the data have no temperature.
        "turbulent_radiative_layer_3D", "TRL (3D)", axes=XYZ, grid=(128, 128, 256), frames=101, trajectories=90,
        fields={"density": 0, "pressure": 0, "velocity": 1},
        boundary_conditions={"x": "periodic", "y": "periodic", "z": "open"}, log_fields=("density",),
    ),
    # Downstream
    _flowbench("skelenton", "FPOSkelenton", "downstream", 262),
    Scenario(
        # Fields and sides are those of the authors' own conversion, which the fine-tuned model was made with.
        "bubbleml_pool_boiling_subcooled", "PoolBoil Subcooled", "hpcforge/BubbleML_2", "downstream", XY, (512, 512),
        2001, 44, fields={"gas-interface-sdf": 0, "temperature": 0, "velocity": 1},
        boundary_conditions={"x": "wall", "y": ("wall", "open")}, licence="CC-BY-4.0", format="bubbleml",
        added_fields=("gas-interface-sdf",),
    ),
    Scenario(
        # What the fine-tuned model calls the smoke is not published. It drives the flow as buoyancy does.
        "pdearena_conditioned_ns", "Conditioned Incompressible NS", "pdearena/NavierStokes-2D-conditoned", "downstream",
        XY, (128, 128), 56, 6816, fields={"smoke": 0, "velocity": 1}, boundary_conditions={"x": "wall", "y": "wall"},
        licence="MIT", format="pdearena", field_names={"smoke": "buoyancy"},
    ),
    Scenario(
        # Periodic by an account of the paper (arXiv 2405.19101), which was not seen itself.
        "pdegym_ce_rm", "CE-RM", "camlab-ethz/CE-RM", "downstream", XY, (128, 128), 21, 1260,
        fields={"density": 0, "pressure": 0, "velocity": 1}, boundary_conditions={"x": "periodic", "y": "periodic"},
        licence="CC-BY-NC-4.0", format="pdegym",
    ),
    _pdebench("turbulent", "CNS Turbulent (3D)", 64, 600),
    _pdebench("random", "CNS Random (3D)", 128, 100),
    _well(
        # Metadata: open and periodic, the card: open; which axis is periodic is concluded from the geometry.
        "post_neutron_star_merger", "PNS (3D)", "downstream", axes=("log_r", "theta", "phi"), grid=(192, 128, 66),
        frames=181, trajectories=8,
        fields={
            "density": 0, "internal_energy": 0, "pressure": 0, "temperature": 0, "electron_fraction": 0, "entropy": 0,
            "magnetic_field": 1, "velocity": 1,
        },
        boundary_conditions={"log_r": "open", "theta": "open", "phi": "periodic"}, grid_type="spherical",
        log_fields=("density", "internal_energy", "pressure", "temperature", "entropy"),
    ),
    _well(
        # Metadata: open and periodic; which axis is periodic is concluded from the geometry, a slice of a sphere.
        "convective_envelope_rsg", "RSG (3D)", "downstream", axes=("r", "theta", "phi"), grid=(256, 128, 256),
        frames=100, trajectories=29, fields={"density": 0, "energy": 0, "pressure": 0, "velocity": 1},
        boundary_conditions={"r": "open", "theta": "open", "phi": "periodic"}, grid_type="spherical", time_stride=5,
    ),
)  # fmt: skip

SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
