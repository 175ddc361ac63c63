"""What the tests of training share."""

from contextlib import contextmanager

import pytest

from radvision_utils.training import train


@pytest.fixture
def interrupted_at():
    """Within `interrupted_at(step)` somebody stops the training at the end of that optimizer step."""

    @contextmanager
    def interrupted(step):
        def stop(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train.StageLog, "on_step_end", stop)
            with pytest.raises(KeyboardInterrupt):
                yield

    return interrupted
