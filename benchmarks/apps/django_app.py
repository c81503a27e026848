"""The smallest Django site: one view, and the middleware of `django-admin startproject` that needs no database."""

from __future__ import annotations

import django  # type: ignore[import-untyped]
from django.conf import settings  # type: ignore[import-untyped]
from django.http import HttpRequest, HttpResponse  # type: ignore[import-untyped]
from django.urls import path  # type: ignore[import-untyped]

settings.configure(
    SECRET_KEY="not secret: this is a benchmark",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
    ],
)
django.setup()

from django.core.asgi import get_asgi_application  # type: ignore[import-untyped]  # noqa: E402
from django.core.wsgi import get_wsgi_application  # type: ignore[import-untyped]  # noqa: E402


def index(request: HttpRequest) -> HttpResponse:
    """Greet."""
    return HttpResponse("Hello, World!", content_type="text/plain")


urlpatterns = [path("", index)]
wsgi = get_wsgi_application()
asgi = get_asgi_application()
