"""What the workers of `manage.py forkserve` load: the project's application, with what `runserver` adds. In a worker."""

from __future__ import annotations

import os
from typing import Any

import django  # type: ignore[import-untyped]
from django.apps import apps  # type: ignore[import-untyped]
from django.conf import settings  # type: ignore[import-untyped]
from django.core.management.base import BaseCommand  # type: ignore[import-untyped]
from django.db import connections  # type: ignore[import-untyped]
from django.utils.module_loading import import_string  # type: ignore[import-untyped]


def wsgi(*, static: bool = True, insecure: bool = False, checks: bool = True) -> Any:
    """Return the application of WSGI_APPLICATION.

    Args:
        static: Serve the files of `django.contrib.staticfiles` if DEBUG is on.
        insecure: Serve them in any case.
        checks: Run the system checks first.
    """
    from django.core.servers.basehttp import get_internal_wsgi_application  # type: ignore[import-untyped]  # noqa: PLC0415

    _check(checks=checks)
    app = get_internal_wsgi_application()
    if not _serves_static(static=static, insecure=insecure):
        return app
    from django.contrib.staticfiles.handlers import StaticFilesHandler  # type: ignore[import-untyped]  # noqa: PLC0415

    return StaticFilesHandler(app)


def asgi(*, static: bool = True, insecure: bool = False, checks: bool = True) -> Any:
    """Return the application of ASGI_APPLICATION. The arguments are those of `wsgi`."""
    _check(checks=checks)
    app = import_string(settings.ASGI_APPLICATION)
    if not _serves_static(static=static, insecure=insecure):
        return app
    from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler  # noqa: PLC0415

    return ASGIStaticFilesHandler(app)


def _serves_static(*, static: bool, insecure: bool) -> bool:
    return static and (settings.DEBUG or insecure) and apps.is_installed("django.contrib.staticfiles")


def _check(*, checks: bool) -> None:
    """Run the checks of `runserver`, in one worker for all, or in the mold. An error is raised, and shown as one of the app's."""
    django.setup(set_prefix=False)
    if os.environ.get("FORKSERVE_WORKER_ID", "1") != "1":
        return
    command = BaseCommand()
    if checks:
        command.check(display_num_errors=True)
    command.check_migrations()
    connections.close_all()
