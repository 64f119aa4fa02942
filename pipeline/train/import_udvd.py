"""Import UDVD weights that were trained elsewhere as a model."""

from __future__ import annotations

from tdenoise.network import checkpoint
from tdenoise.network.card import CardDetails, ModelCard
from tdenoise.network.udvd import read_weights

from ..errors import InputError
from ..runs import plans, progress
from ..settings.result_settings import ModelsImportConfig
from ..version import VERSION


def import_model(config: ModelsImportConfig) -> ModelCard:
    """Make a model of UDVD weights that the script of its users saved.

    Parameters
    ----------
    config : ModelsImportConfig

    Returns
    -------
    ModelCard
        It names no training movie, for the file does not say any.

    Raises
    ------
    InputError
        If the file is no state dict of the grey, five-frame UDVD.
    UsageError
        If the output exists and is another model.
    """
    radius = 1 if config.blind_radius is None else config.blind_radius
    try:
        network, sha256 = read_weights(config.weights, radius)
    except ValueError as error:
        raise InputError(config.weights, f"{error}.") from None
    identity = {"step": "models import", "weights": sha256, "blind_radius": radius}
    if not config.force and _imported_as(config, plans.plan_id(identity)):
        return checkpoint.read_card(config.output)
    details: CardDetails = {
        "movies": [],
        "ancestors": [],
        "imported": {"name": config.weights.name, "sha256": sha256},
        "software": VERSION,
    }
    with progress.OutputRun(config.output, identity, [config.weights], force=config.force) as run:
        run.prepare(lambda path: path.mkdir(parents=True))
        card = checkpoint.save_model(run.partial, network, {**details, "plan": run.id})
        run.commit()
    return card


def _imported_as(config: ModelsImportConfig, plan: str) -> bool:
    try:
        return bool(checkpoint.read_card(config.output).get("plan") == plan)
    except checkpoint.ModelError:
        return False
