"""A first tour of the SDK, against a running gateway (`make serve`)."""

import millis


def main() -> None:
    """Asks each default model something."""
    with millis.Client() as client:
        client.wait_ready(timeout=10)

        intent = client.classify("hi, my parcel was due on tuesday and it's still not here??", model="intent")
        print("intent:   ", intent.label, f"{intent.score:.2f}")

        news = ["Profit warning sends shares of the chipmaker down 12 %", "Board to meet on 3 May to consider results"]
        for headline, sentiment in zip(news, client.classify(news, model="sentiment"), strict=True):
            print("sentiment:", sentiment.label, f"{sentiment.score:.2f}", "|", headline)

        tagged = client.tag("Dr. Amara Okafor moved from Lagos to Zürich on 3 May to join Siemens Energy.")
        print("entities: ", ", ".join(f"{entity.text} ({entity.label})" for entity in tagged.entities))

        documents = ["Our office is in Lyon.", "You can send it back within 30 days.", "We ship on weekdays."]
        ranking = client.rank("how do I return something?", documents)
        print("best:     ", documents[ranking[0].index], f"{ranking[0].score:.2f}")

        vector = client.embed("the same thing, said differently", include_timing=True)
        timing = vector.info.timing
        assert timing is not None, "it was asked for"
        print(
            "vector:   ",
            f"{len(vector.values)} dimensions from {vector.info.served_by.variant}, "
            f"{timing.total_ms:.1f} ms in the gateway",
        )


if __name__ == "__main__":
    main()
