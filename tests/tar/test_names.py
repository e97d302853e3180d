"""Which URL is which shard of a table, whatever query it has."""

import pytest

from flowdata import MismatchError, ShardError
from flowdata.tar.names import ShardNames, match_all, shard_names
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
    assert ShardNames(names).number(url) == 0
    assert query not in str(names)
    with pytest.raises(MismatchError, match="with another query only"):
        ShardNames(names).number("https://h/get?file=other")
    with pytest.raises(MismatchError, match="one of 2 shards"):
        ShardNames(names).number("https://h/get")


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
    assert ShardNames(("what?.tar", "b.tar")).number("/e/what?.tar") == 0
    with pytest.raises(MismatchError):
        ShardNames(("what?.tar", "b.tar")).number("/e/what")
    assert address("pipe:curl 'https://h/a?b=c'") == address("/d/a?b=c") == ""


COMMANDS = [
    "curl -s -L http://host/a/{0} || true",
    "curl -sL 'https://user:word@host/d/a/{0}?X-Amz-Signature=1' || curl -s https://mirror/a/{0}",
    "aws s3 cp s3://bucket/a/{0} -",
    "gsutil cat gs://bucket/a/{0}",
    "cat</data/a/{0}|head -c 9999999",
    "dd if=/data/a/{0} bs=1M",
    "curl --silent --url=http://host/a/{0}",
    "ssh host 'cat /data/a/{0}'",
    "curl -s \\\n  $STORE/a/{0}",
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("base", ["s-0.tar", "part of 1.tar"])
def test_a_shell_command_is_the_shard_among_its_words(command, base):
    names = (base, "s-1.tar", "b/s-0.tar", "b/part of 1.tar")
    quoted = base.replace(" ", "\\ ") if "'" not in command else base
    assert ShardNames(names).number("pipe:" + command.format(quoted)) == 0
    with pytest.raises(MismatchError, match=r"(?s)knows no shard pipe:.*it knows"):
        ShardNames(names).number("pipe:" + command.format("s-2.tar"))


def test_a_command_that_names_several_shards_or_is_cut_off_is_none():
    names = ShardNames(("a.tar", "b.tar", "x/a.tar"))
    for command in ("cat /d/a.tar /d/b.tar", "cat /d/a.tar /x/a.tar"):
        with pytest.raises(MismatchError, match="names 2 shards"):
            names.number("pipe:" + command)
    for command in ("cat '/d/a.tar", "cat /d/a.tar.gz", "cat file://host/c.tar", "", "true"):
        with pytest.raises(MismatchError, match="knows no shard"):
            names.number("pipe:" + command)
    assert names.number("pipe:test -f /x/a.tar && cat /x/a.tar || curl http://h/x/a.tar") == 2


def test_shards_of_a_command_have_one_name_however_they_are_reached():
    numbers = range(3)
    commands = [f"pipe:curl -s 'http://host/d/s-{n}.tar?sig=1' | tee copy" for n in numbers]
    names = shard_names(commands)
    assert names == ("s-0.tar", "s-1.tar", "s-2.tar")
    for form in ("/e/s-{}.tar", "s3://b/s-{}.tar", "pipe:cat s-{}.tar"):
        urls = [form.format(n) for n in numbers]
        assert match_all(urls[::-1], names) == urls
    cached = "pipe:cat /cache/d/s-{0}.tar || curl http://h/d/s-{0}.tar | tee /cache/d/s-{0}.tar"
    assert shard_names([cached.format(n) for n in numbers]) == names
    # Where the tar file does not tell them apart, or there is none, commands are names.
    for form in ("pipe:filter {} /d/a.tar", "pipe:pack /d/{}", "pipe:cat {0}.tar other-{0}.tar"):
        commands = [form.format(n) for n in numbers]
        names = shard_names(commands)
        assert not any("/" in name for name in names)
        assert match_all(commands[::-1], names) == commands
    with pytest.raises(ShardError, match="twice"):
        shard_names(["pipe:cat a.tar", "pipe:cat a.tar"])


def test_what_is_secret_in_a_command_is_neither_shown_nor_in_a_table():
    urls = [
        f"pipe:curl -H 'X-Auth: se-cret' -u me:se-cret 'https://me:se-cret@h/get?t={n}&s=se-cret'"
        for n in range(2)
    ]
    names = shard_names(urls)
    assert len(set(names)) == 2
    assert "se-cret" not in str(names)
    assert match_all(urls[::-1], names) == urls
    # Tables of before that was so have the commands.
    assert match_all(urls[::-1], [url.replace("/", "\u2215") for url in urls]) == urls
    with pytest.raises(MismatchError) as caught:
        ShardNames(("a.tar",)).number(f"{urls[0]} | KEY=se-cret sign --token se-cret")
    assert "se-cret" not in str(caught.value)


def test_a_name_is_found_among_many_without_going_through_them():
    names = GoneThroughOnce(f"{n % 7}/{n:07}.tar" for n in range(100_000))
    known = ShardNames(names)
    for n in (0, 77, 99_999):
        assert known.number(f"https://host/data/{n % 7}/{n:07}.tar") == n
        assert known.number(f"pipe:curl -s https://host/data/{n % 7}/{n:07}.tar || true") == n
    assert names.asked < 20


class GoneThroughOnce(tuple):
    """Names that count how often one is asked for, and are gone through once."""

    asked = passes = 0

    def __getitem__(self, number):
        self.asked += 1
        return super().__getitem__(number)

    def __iter__(self):
        self.passes += 1
        assert self.passes == 1
        return super().__iter__()
