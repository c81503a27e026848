"""The Django app `forkserve.contrib.django`: in INSTALLED_APPS it adds the command `manage.py forkserve`."""
