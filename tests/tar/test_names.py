"""Which URL is which shard of a table, whatever query it has."""

import pytest

from flowdata import MismatchError, ShardError
from flowdata.tar.names import match, match_all, shard_names
from flowdata.transport.urls import address

S3 = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=K{0}&X-Amz-Date={0}&X-Amz-Expires=60"
SIGNED = {
    "S3": S3 + "&X-Amz-SignedHeaders=host&X-Amz-Signature={0}",
    "S3, with a session": S3 + "&X-Amz-Security-Token=t{0}&X-Amz-Signature={0}",
    "S3, version 2": "AWSAccessKeyId=K&Expires=1{0}&Signature={0}%3D",
    "Google": "X-Goog-Algorithm=GOOG4&X-Goog-Credential=c{0}&X-Goog-Date={0}&X-Goog-Expires=9"
    "&X-Goog-SignedHeaders=host&X-Goog-Signature={0}",
    "Google, version 2": "GoogleAccessId=a&Expires={0}&Signature={0}",
    "Azure": "sv=2024-11-04&se={0}&sr=b&sp=r&st={0}&spr=https&sig={0}",
    "Azure, delegated": "skoid=1&sktid=2&skt={0}&ske={0}&sks=b&skv=3&sv=4&sr=b&sp=r&se={0}&sig={0}",
    "CloudFront": "Policy={0}&Signature={0}&Key-Pair-Id=K{0}",
    "Alibaba": "x-oss-signature-version=OSS4-HMAC-SHA256&x-oss-credential=a%2F{0}&x-oss-date={0}"
    "&x-oss-expires=60&x-oss-security-token=t{0}&x-oss-signature={0}",
    "Alibaba, version 1": "OSSAccessKeyId=STS.{0}&Expires={0}&security-token={0}&Signature={0}",
    "Tencent": "q-sign-algorithm=sha1&q-ak=a{0}&q-sign-time={0}%3B9&q-key-time={0}%3B9"
    "&q-header-list=host&q-url-param-list=&q-signature={0}&x-cos-security-token={0}",
    "Huawei": "AccessKeyId=a{0}&Expires={0}&x-obs-security-token={0}&Signature={0}",
    "one of one's own": "signature={0}",
}


@pytest.mark.parametrize("query", SIGNED.values(), ids=SIGNED)
def test_a_url_that_is_signed_anew_is_the_same_shard(query):
    url = "https://h/a.tar?" + query
    assert address(url.format("1")) == ""
    assert shard_names([url.format("1")]) == ("a.tar",)
    assert match_all([url.format("2")], ("a.tar",)) == [url.format("2")]
    with pytest.raises(ShardError, match="twice"):
        shard_names([url.format("1"), url.format("2")])
    # What else is in the query is the address, and stays it.
    parts = [f"https://h/get?file={name}&{query.format(name)}" for name in "ab"]
    names = shard_names(parts)
    assert len(set(names)) == 2
    again = [f"https://h/get?{query.format(3)}&file={name}" for name in "ba"]
    assert match_all(again, names) == again[::-1]


ADDRESSES = ["file=a", "id=1", "v=1&file=a", "versionId=x", "key=a%2Fb.tar", "token=a", "expires=1"]


@pytest.mark.parametrize("query", ADDRESSES)
def test_a_query_that_is_an_address_is_a_part_of_the_name(query):
    url = f"https://h/get?{query}"
    names = shard_names([url, "https://h/get?" + query.replace("1", "2").replace("a", "b") + "z"])
    assert match(url, names) == 0
    assert query not in str(names)
    with pytest.raises(MismatchError, match="with another query only"):
        match("https://h/get?file=other", names)
    with pytest.raises(MismatchError, match="one of 2 shards"):
        match("https://h/get", names)


def test_signatures_that_nobody_knows_can_be_named():
    urls = [f"https://h/a.tar?Token={number}&until={number}" for number in (1, 2)]
    names = shard_names(urls[:1], ("token", "until"))
    assert names == ("a.tar",)
    assert match_all(urls[1:], names, ("token", "until")) == urls[1:]
    with pytest.raises(MismatchError, match="signed_by"):
        match_all(urls[1:], shard_names(urls[:1]))


def test_shards_are_found_without_their_query_on_a_disk_and_the_other_way_round():
    names = shard_names(["https://h/a.tar?download=true", "https://h/b.tar?download=true"])
    assert match_all(["/data/b.tar", "/data/a.tar"], names) == ["/data/a.tar", "/data/b.tar"]
    local = shard_names(["/data/a.tar", "/data/b.tar"])
    urls = ["https://h/a.tar?download=true", "https://h/b.tar?download=true"]
    assert match_all(urls, local) == urls


def test_a_question_mark_in_the_name_of_a_file_is_no_query():
    assert shard_names(["/d/what?.tar", "/d/b.tar"]) == ("what?.tar", "b.tar")
    assert match("/e/what?.tar", ("what?.tar", "b.tar")) == 0
    with pytest.raises(MismatchError):
        match("/e/what", ("what?.tar", "b.tar"))
    assert address("pipe:curl 'https://h/a?b=c'") == address("/d/a?b=c") == ""
