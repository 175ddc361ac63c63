"""Few examples, always the same, for the fast tests; `pytest tests/fuzz --hypothesis-profile=long` tries many more."""

import importlib.util

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    settings.register_profile("fast", max_examples=50, derandomize=True, deadline=None, database=None)
    settings.register_profile("long", max_examples=3000, deadline=None, database=None)
    if settings.get_current_profile_name() == "default":
        settings.load_profile("fast")
