"""The description of the API that is served."""

from tests.unit.api.scripted import played

PUBLIC = "/health"
"""Refuses nobody."""


def test_every_route_says_what_it_gives_and_what_its_errors_look_like() -> None:
    with played() as server:
        status, described = server.post("/openapi.json", None, "GET")
    assert status == 200 and len(described["paths"]) > 20
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            if path != PUBLIC:
                assert {"200", "4XX", "503"} <= set(operation["responses"]), (method, path)
                content = operation["responses"]["4XX"]["content"]["application/json"]
                assert content["schema"], (method, path)
