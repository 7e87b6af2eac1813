"""Downloads the seed disk of a recovery point with Azure's own client: ENDPOINT CONTAINER KEYFILE SEQUENCE OUT."""

import sys

from azure.storage.blob import ContainerClient

endpoint, container, key, sequence, out = sys.argv[1:]
client = ContainerClient(endpoint, container, credential=open(key).read().strip())
found = [
    blob
    for blob in client.list_blobs(name_starts_with="seed/", include=["snapshots", "metadata"])
    if blob.snapshot and f"@{sequence}%20" in blob.metadata.get("label", "")
]
assert len(found) == 1, [(blob.name, blob.metadata) for blob in found]
assert found[0].blob_type == "PageBlob", found[0].blob_type
with open(out, "wb") as file:
    client.get_blob_client(found[0].name, snapshot=found[0].snapshot).download_blob().readinto(file)
print(found[0].name)
