"""Enqueues a job as a foreign program would: with pika, knowing nothing but the published
asyncapi.json and JSON Schemas.

usage: pika_enqueue.py SCHEMAS POOL, with the broker's URL in AMQP_URL. Prints the job's id.
"""

import datetime
import json
import os
import pathlib
import sys
import uuid

import pika


def resolve(document, reference):
    """Follows a reference within a document."""
    for step in reference.removeprefix("#/").split("/"):
        document = document[step]
    return document


def main():
    schemas, pool = pathlib.Path(sys.argv[1]), sys.argv[2]
    api = json.loads((schemas / "asyncapi.json").read_text())
    channel = api["channels"]["job.enqueued"]
    message = resolve(api, channel["messages"]["job.enqueued"]["$ref"])
    example = message["examples"][0]["payload"]
    # The payload's schema says which fields there are and which must be.
    schema = json.loads((schemas / message["payload"]["$ref"]).read_text())

    job = str(uuid.uuid4())
    now = datetime.datetime.now(datetime.timezone.utc)
    event = dict(
        example,
        subject=job,
        id=example["id"].replace(example["subject"], job),
        source="/producers/pika",
        time=now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        data={"by": "pika", "spec": {"image": "simulated", "pool": pool}},
    )
    event.pop("traceparent", None)
    missing = set(schema["required"]) - set(event)
    assert not missing, f"the schema wants {missing} too"

    lane = channel["parameters"]["lane"]["default"]
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
    amqp = connection.channel()
    amqp.confirm_delivery()
    # With confirms and `mandatory`, no return without an exception means that a queue has it.
    amqp.basic_publish(
        exchange=channel["bindings"]["amqp"]["exchange"]["name"],
        routing_key=channel["address"].format(pool=pool, lane=lane),
        body=json.dumps(event).encode(message["bindings"]["amqp"]["contentEncoding"]),
        properties=pika.BasicProperties(
            content_type=message["contentType"],
            message_id=event["id"],
            delivery_mode=2,
        ),
        mandatory=True,
    )
    connection.close()
    print(job)


if __name__ == "__main__":
    main()
