"""Three verdicts on a denoised movie: what you can trust, what was lost or invented, what to do next.

A verdict is the worst of several findings. Each finding has one of three states: nothing speaks against the movie,
something does, or too little is known to say. A figure that cannot be true, or that comes from too few counts, never
counts as a good one.
"""

from __future__ import annotations

from .evaluation_result import Evaluation
from .verdict import Recording, Verdict
from .verdict_loss import loss
from .verdict_next import next_step
from .verdict_trust import trust


def verdicts(result: Evaluation, recording: Recording) -> list[Verdict]:
    """The three verdicts, in the order of the page.

    Parameters
    ----------
    result : Evaluation
        As `tdenoise_pipeline.evaluate.evaluate` returns it.
    recording : Recording

    Returns
    -------
    list of Verdict
        Trust, loss, next.
    """
    return [trust(result, recording), loss(result, recording), next_step(result, recording)]
