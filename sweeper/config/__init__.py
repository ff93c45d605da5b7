"""The choices of a cell and the settings of a sweep: validated once, here; frozen and typed everywhere else.

A composed Hydra config becomes `Settings` and `Cell`s through `parse`. Inside the package nobody sees a `DictConfig`.
"""

from sweeper.config.cell import ADDED, Cell, Device, Numerics, label
from sweeper.config.checkpoints import (
    Checkpoint,
    FolderCheckpoint,
    HubCheckpoint,
    SeededCheckpoint,
    WheelCheckpoint,
)
from sweeper.config.choices import (
    Attention,
    Batch,
    Compile,
    Decode,
    Dtype,
    Head,
    Layout,
    LoadStrategy,
    Pooling,
    Positions,
)
from sweeper.config.inputs import Inputs, Message
from sweeper.config.parsing import parse
from sweeper.config.settings import (
    FAIL_ON,
    GpusLauncherSettings,
    InlineLauncherSettings,
    LauncherSettings,
    RayLauncherSettings,
    Settings,
    SlurmLauncherSettings,
    WandbSettings,
    Weights,
)
from sweeper.config.words import LONGEST_NAME

__all__ = [
    "ADDED",
    "FAIL_ON",
    "LONGEST_NAME",
    "Attention",
    "Batch",
    "Cell",
    "Checkpoint",
    "Compile",
    "Decode",
    "Device",
    "Dtype",
    "FolderCheckpoint",
    "GpusLauncherSettings",
    "Head",
    "HubCheckpoint",
    "InlineLauncherSettings",
    "Inputs",
    "LauncherSettings",
    "Layout",
    "LoadStrategy",
    "Message",
    "Numerics",
    "Pooling",
    "Positions",
    "RayLauncherSettings",
    "SeededCheckpoint",
    "Settings",
    "SlurmLauncherSettings",
    "WandbSettings",
    "Weights",
    "WheelCheckpoint",
    "label",
    "parse",
]
