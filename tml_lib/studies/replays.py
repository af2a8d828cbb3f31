"""How each study's evidence is made again, by the study that the evidence names: see
`claims.replay`.

A record that cost a training run is replayed by the first steps of that training. The evidence
keeps their losses, and says where they were made after the run. Where the trained weights are
shipped (SmolLM2's adapter), the record itself is.
"""

from __future__ import annotations

from tml_lib.claims.replay import Replay
from tml_lib.studies import (
    chain,
    efficiency,
    lora,
    material,
    paths,
    precision,
    program_probes,
    published,
    rates,
    rejection,
    rl,
    roles,
    shortened,
    strides,
    supervised,
    toy_maml,
    trajectories,
    transfer,
    updates,
    written_descent,
)

STUDIES = (
    chain.STUDY,
    written_descent.DESCENT,
    efficiency.STUDY,
    lora.STUDY,
    material.STUDY,
    paths.STUDY,
    paths.TEXT,
    precision.STUDY,
    program_probes.STUDY,
    rates.STUDY,
    rejection.STUDY,
    rl.RL,
    rl.SIZE,
    roles.STUDY,
    shortened.TEXT,
    strides.STUDY,
    supervised.SFT,
    supervised.SUPPORT,
    toy_maml.SINUSOIDS,
    trajectories.STUDY,
    transfer.STUDY,
    updates.STUDY,
    updates.TOY,
)
REPLAYS: dict[str, tuple[Replay, ...]] = {"published": published.REPLAYS}
for _study in STUDIES:
    REPLAYS[_study.name] = (*REPLAYS.get(_study.name, ()), *_study.replays)
