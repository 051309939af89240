"""How the demo tasks read a reply."""


def contains_value(doc: dict, results: list[str]) -> dict:
    """Accuracy of an open question: 1 when the reply names the value asked for, in whatever sentence."""
    return {"acc": float(doc["value"].lower() in results[0].lower())}
