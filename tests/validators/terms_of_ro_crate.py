"""Put the terms of RO-Crate where its validator looks before it asks the web: `python terms_of_ro_crate.py CACHE`.

The package `rocrate` has those of 1.3, which differ from those of 1.2 in four terms of Bioschemas; we use none of them.
"""

import io
import sys
from importlib import resources
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests_cache import CachedSession

TERMS = "https://w3id.org/ro/crate/1.2/context"


class OfPackage(HTTPAdapter):
    """Answers with the file of the package instead of asking the web."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        body = io.BytesIO((resources.files("rocrate") / "data/ro-crate.jsonld").read_bytes())
        headers = {"Content-Type": "application/ld+json"}
        raw = urllib3.HTTPResponse(body, headers, 200, preload_content=False, request_url=TERMS)
        return self.build_response(request, raw)


session = CachedSession(cache_name=sys.argv[1], backend="sqlite")
session.mount(TERMS, OfPackage())
session.get(TERMS).json()
