"""How a run is carried out, which decides none of its numbers: mesh, watchdog, evaluations, files and logs."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How devices share the work: a mesh of data x fsdp x model devices.

    Attributes:
        data: groups of devices that split the batch; 0 takes all that the other axes leave.
        fsdp: devices that split the batch and the parameters; 0 takes what a given `data` leaves, else
            chooses: 1 if a whole state fits a device, else the least number at which it fits.
        model: devices that split the prototypes of all last layers, and repeat the backbone's work.
    """

    data: int = 0
    fsdp: int = 0
    model: int = 1

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        for name, least in (("data", 0), ("fsdp", 0), ("model", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be {least} or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """When the metrics of a run count as a collapse, and what follows.

    Entropies and divergences are shares of the logarithm of the number of prototypes.

    Attributes:
        stop_on_collapse: whether a collapse ends the run, once its state is saved; else it is a warning.
        window: consecutive logged rows that show a condition before it counts; 0 to check nothing.
        grace_steps: least number of steps without checks; the warm-up of the learning rate has none either.
        uniform_entropy: a teacher entropy above it is uniform.
        single_entropy: a teacher entropy below it means one prototype for each token ...
        single_kl: ... and a divergence below it, that the student predicts which.
        min_feature_rank: least healthy participation ratio of the [CLS] tokens.
        min_feature_spread: least healthy variance of the [CLS] tokens, as a share of their squared norm.
        min_feature_norm: least healthy mean norm of the [CLS] tokens.
        min_num_clusters: least healthy mean K; not checked where no more than two are possible.
        min_valid_fraction: least healthy share of clusters that both views show.
    """

    stop_on_collapse: bool = False
    window: int = 20
    grace_steps: int = 200
    uniform_entropy: float = 0.99
    single_entropy: float = 0.01
    single_kl: float = 0.2
    min_feature_rank: float = 1.1
    min_feature_spread: float = 1e-4
    min_feature_norm: float = 1e-3
    min_num_clusters: float = 2.05
    min_valid_fraction: float = 0.2

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        least = ("min_feature_rank", "min_feature_norm", "min_num_clusters")
        for name in ("window", "grace_steps", *least):
            # Nothing compares with a NaN.
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be 0 or more")
        for name in ("uniform_entropy", "single_entropy", "single_kl", "min_feature_spread", "min_valid_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: a share, from 0 to 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is scored and recorded while a run trains; it changes no number of the run.

    Attributes:
        protocols: config files such as "configs/eval/knn.py" or "configs/eval/linear.py:demo", each perhaps followed
            by "@" and its labeled data; scored with the teacher.
        root: labeled data of all protocols that do not name their own.
        overrides: settings "FIELD=VALUE" of the protocols, such as "knn.image_size=96"; each applies to those that
            have the field.
        unlabeled: whether a few training images give scores without labels: retrieval of the other crop, k-means
            compactness and effective rank.
        every_epochs: epochs between two evaluations; 0 chooses by `max_share`.
        max_share: with `every_epochs=0`, the largest share of the time that evaluations take.
        best: the score whose best checkpoint is kept for good, such as "knn_top1"; empty for none.
        pictures: images whose clusters and components are recorded along the run, for the report; 0 for none.
        pictures_every_epochs: epochs between two records; 0 spreads 13 over the run, in a small share of its time.
    """

    protocols: tuple[str, ...] = ()
    root: str = ""
    overrides: tuple[str, ...] = ()
    unlabeled: bool = True
    every_epochs: int = 0
    max_share: float = 0.05
    best: str = ""
    pictures: int = 6
    pictures_every_epochs: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        for name in ("every_epochs", "pictures", "pictures_every_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be 0 or more")
        if not 0 < self.max_share <= 1:
            raise ValueError(f"max_share={self.max_share}: a share, above 0 and up to 1")
        if wrong := [text for text in self.overrides if "=" not in text]:
            raise ValueError(f"overrides={wrong[0]!r}: expected FIELD=VALUE, such as knn.image_size=96")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Settings that change no number of a run, and so may differ when it is resumed.

    Attributes:
        num_workers: processes that decode and crop; 0 uses threads of the main process, -1 chooses by
            the number of CPU cores.
        num_threads: threads a worker; -1 chooses by the number of CPU cores.
        log_every_steps: steps between two lines of metrics.jsonl.
        checkpoint_every_minutes: longest time between two saves of the latest state.
        keep_every_epochs: epochs between two checkpoints that are never deleted.
        mesh: how devices share the work.
        watchdog: thresholds of the collapse detection.
        wandb_project: project of Weights & Biases that gets the numbers, too; empty for none.
    """

    num_workers: int = -1
    num_threads: int = -1
    log_every_steps: int = 10
    checkpoint_every_minutes: float = 10.0
    keep_every_epochs: int = 50
    mesh: MeshConfig = MeshConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    wandb_project: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        for name in ("log_every_steps", "keep_every_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be 1 or more")
        for name in ("num_workers", "num_threads"):
            if getattr(self, name) < -1:
                raise ValueError(f"{name}={getattr(self, name)}: 0 or more, or -1 to choose by the number of CPU cores")
        if self.checkpoint_every_minutes < 0:
            raise ValueError(f"checkpoint_every_minutes={self.checkpoint_every_minutes}: must be 0 or more")
