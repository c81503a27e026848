"""Django in one file: a page, the admin, static files, an SQLite database. WSGI or ASGI.

    forkserve example_apps.django_app:wsgi --workers 4 --base-port 9000
    forkserve example_apps.django_app:asgi --workers 4 --base-port 9000

The database is the file that DJANGO_DATABASE names (`django_app.sqlite3` in the working directory if it names none);
it is made and migrated when a worker loads this. If DJANGO_SUPERUSER_PASSWORD is set, `admin` may log in at
`/admin/` with it. To work with the database by hand:

    python -c "import example_apps.django_app as site; site.command('createsuperuser')"
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

# Django has no type information of its own: mypy takes it all as Any, hence the ignores in this file.
import django  # type: ignore[import-untyped]
from django.apps import apps  # type: ignore[import-untyped]
from django.conf import settings  # type: ignore[import-untyped]

DATABASE = Path(os.environ.get("DJANGO_DATABASE", "django_app.sqlite3")).absolute()
CONTRIB = ["admin", "auth", "contenttypes", "sessions", "messages", "staticfiles"]

settings.configure(
    SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", "not secret: this is an example"),  # all workers need the same
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=[f"django.contrib.{name}" for name in CONTRIB] + [__name__],
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ],
            },
        },
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": DATABASE, "OPTIONS": {"timeout": 20}}},
    LOGGING={  # Django's default logs no 500
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"stderr": {"class": "logging.StreamHandler", "level": "ERROR"}},
        "loggers": {"django": {"handlers": ["stderr"]}},
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    STATIC_URL="/static/",
    USE_TZ=True,
)
django.setup()

# Modules that read the settings or define a model can be imported only now.
from django.contrib import admin  # type: ignore[import-untyped]  # noqa: E402
from django.contrib.auth.models import User  # type: ignore[import-untyped]  # noqa: E402
from django.contrib.staticfiles.handlers import (  # type: ignore[import-untyped]  # noqa: E402
    ASGIStaticFilesHandler,
    StaticFilesHandler,
)
from django.core.asgi import get_asgi_application  # type: ignore[import-untyped]  # noqa: E402
from django.core.management import call_command as command  # type: ignore[import-untyped]  # noqa: E402
from django.core.wsgi import get_wsgi_application  # type: ignore[import-untyped]  # noqa: E402
from django.db import connections, models  # type: ignore[import-untyped]  # noqa: E402
from django.http import HttpRequest, HttpResponse  # type: ignore[import-untyped]  # noqa: E402
from django.urls import path  # type: ignore[import-untyped]  # noqa: E402


class Visit(models.Model):  # type: ignore[misc]
    """One line of the guest book."""

    at = models.DateTimeField(auto_now_add=True)
    name = models.CharField(max_length=50)

    def __str__(self) -> str:
        """Name the visitor, for the admin."""
        return str(self.name)


def index(request: HttpRequest) -> HttpResponse:
    """Add a visit and answer with the number of visits."""
    Visit.objects.create(name=request.GET.get("name", "World")[:50])
    return HttpResponse(f"{Visit.objects.count()} visits", content_type="text/plain")


apps.get_containing_app_config(__name__).models_module = sys.modules[__name__]  # there is no models.py to find them in
admin.site.register(Visit)
urlpatterns = [path("", index), path("admin/", admin.site.urls)]

with DATABASE.with_suffix(".lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # several workers load this at once, and one of them must migrate
    command("migrate", run_syncdb=True, verbosity=0)
    if (password := os.environ.get("DJANGO_SUPERUSER_PASSWORD")) and not User.objects.exists():
        User.objects.create_superuser("admin", password=password)
connections.close_all()  # a connection must not be carried over a fork

wsgi = StaticFilesHandler(get_wsgi_application())
asgi = ASGIStaticFilesHandler(get_asgi_application())
