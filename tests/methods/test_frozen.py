"""Every method trains a model with a frozen encoder, or says why it does not."""

from __future__ import annotations

import pytest
from methods.small import batch, gradients, make

from mmpareto.methods import METHODS, MethodError

NAMES = [*METHODS.names(group=""), "upgrad"]  # one of TorchJD's stands for all


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frozen", [("x",), ("x", "y")], ids=str)
def test_frozen_encoders_get_no_gradient(name: str, frozen: tuple[str, ...]) -> None:
    method, model = make(name)
    for m in frozen:
        model.encoders[m].requires_grad_(False)
    if name == "gradnorm":
        with pytest.raises(MethodError, match="that of x is frozen: let it learn, or choose another --method"):
            method.setup(model, 0, 4)
        return
    method.setup(model, 0, 4)
    computed = gradients(method, model, *batch(model))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert computed.keys() <= learning
    heads = {name for name, _ in model.named_parameters() if name.startswith("heads.")}  # one, where it is shared
    assert heads <= computed.keys()
    first = method.turns[0] == ("encoders.x.", "heads.") and len(method.turns) == 1  # the turn of y comes later
    assert any(key.startswith("encoders.y") for key in computed) == ("y" not in frozen and not first)
