"""The service one would write in an afternoon: paho-mqtt, asyncio and asyncpg. A yardstick.

    plain_python.py BROKER_PORT DATABASE_URI FILTER CLIENT_ID

paho's thread hands every message to the event loop, four tasks parse it and fill batches of 500 or
1 s, and asyncpg copies them into the table. As paho does by itself, a message is acknowledged when
it has been received: what is in memory is lost with the process. Must never be made cleverer than
that, or slower: ingestd is compared with it.
"""

import asyncio
import datetime
import json
import signal
import sys

import asyncpg
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.properties import PacketTypes, Properties

BATCH = 500
INTERVAL = 1.0


def log(event):
    now = datetime.datetime.now(datetime.timezone.utc)
    print(f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03}Z info {event}", file=sys.stderr,
          flush=True)


class Table:
    """Collects rows and writes them in batches."""

    def __init__(self, pool):
        self.pool = pool
        self.rows = []

    async def add(self, row):
        self.rows.append(row)
        if len(self.rows) >= BATCH:
            await self.flush()

    async def flush(self):
        if self.rows:
            rows, self.rows = self.rows, []
            async with self.pool.acquire() as connection:
                await connection.copy_records_to_table("telemetry", records=rows,
                                                       columns=("time", "topic", "payload"))

    async def flush_regularly(self):
        while True:
            await asyncio.sleep(INTERVAL)
            await self.flush()


async def take(queue, table):
    while True:
        received, message = await queue.get()
        try:
            text = message.payload.decode()
            json.loads(text)
        except ValueError:
            continue
        await table.add((received, message.topic, text))


def subscriber(port, topic_filter, client_id, on_message):
    client = Client(client_id, protocol=MQTTv5)

    def on_connect(client, _userdata, _flags, _reason, _properties):
        log('mqtt_connected message="mqtt connected"')
        client.subscribe(topic_filter, qos=1)

    client.on_connect = on_connect
    client.on_subscribe = lambda *_: log("mqtt_subscribed")
    client.on_message = on_message
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3600
    properties.ReceiveMaximum = 65535
    client.connect("127.0.0.1", port, clean_start=False, properties=properties)
    return client


async def main(port, database_uri, topic_filter, client_id):
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    # Without a limit: with one it would have to drop, for it cannot make paho's thread wait.
    queue = asyncio.Queue()

    def on_message(_client, _userdata, message):
        received = datetime.datetime.now(datetime.timezone.utc)
        loop.call_soon_threadsafe(queue.put_nowait, (received, message))

    async with asyncpg.create_pool(database_uri, min_size=2, max_size=4) as pool:
        table = Table(pool)
        tasks = [asyncio.create_task(take(queue, table)) for _ in range(4)]
        tasks.append(asyncio.create_task(table.flush_regularly()))
        client = subscriber(int(port), topic_filter, client_id, on_message)
        client.loop_start()
        await stop.wait()
        client.disconnect()
        client.loop_stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await table.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
