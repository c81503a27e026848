from collections.abc import Mapping

from forkserve.http.message.fields import Fields
from forkserve.http.message.http1 import Target

class Reader:
    def __init__(self, keys: Mapping[bytes, str], line: int, fields: int, head: int, field: int, /) -> None: ...
    def read(self, head: bytes, /) -> tuple[Target, Fields] | None: ...
