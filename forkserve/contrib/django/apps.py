"""The Django app's configuration."""

from django.apps import AppConfig  # type: ignore[import-untyped]


class ForkserveConfig(AppConfig):  # type: ignore[misc]
    """Names the app: Django would call it `django`."""

    name = "forkserve.contrib.django"
    label = "forkserve"
    verbose_name = "forkserve"
