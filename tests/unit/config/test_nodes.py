"""YAML text to nodes: marks, anchors, merges, includes, and every refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.facts import tells
from up.config.nodes import MAX_BYTES, MAX_DEPTH, MAX_NODES, load_nodes, parse_nodes
from up.config.tree import MappingNode, ScalarNode, SequenceNode, to_plain
from up.errors import ConfigError


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_nodes(text, "x.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("x.yaml:")
    return message


def file_refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_nodes(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{path.parent}/", "")


def mark_of(tree: MappingNode, *keys: str | int) -> str:
    node: MappingNode | SequenceNode | ScalarNode = tree
    for key in keys:
        found = node.items[key] if isinstance(node, SequenceNode) and isinstance(key, int) else node.get(key)  # type: ignore
        assert found is not None
        node = found
    return str(node.mark)


class TestScalars:
    @pytest.mark.parametrize(
        ("written", "value"),
        [
            ("1e-3", 0.001),
            ("1E5", 100000.0),
            ("-.5e2", -50.0),
            ("1.5e3", 1500.0),
            ("2.", 2.0),
            ("'1e-3'", "1e-3"),
            ("8e", "8e"),
            ("e5", "e5"),
            ("0x1F", 31),
            ("1_000", 1000),
            ("yes", True),
            ("off", False),
            ("~", None),
            ("", None),
            ("null", None),
            ("1.0.0", "1.0.0"),
            ("2024-01-02", "2024-01-02"),
            ("!!str 3", "3"),
            ("!!float 3", 3.0),
        ],
    )
    def test_value(self, written: str, value: object) -> None:
        made = to_plain(parse_nodes(f"a: {written}", "x.yaml"))["a"]
        assert made == value
        assert type(made) is type(value)

    def test_bom_and_crlf_work(self, tmp_path: Path) -> None:
        path = tmp_path / "a.yaml"
        path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb:\r\n  c: [x,\r\n    y]\r\n")
        tree = load_nodes(path)
        assert to_plain(tree) == {"a": 1, "b": {"c": ["x", "y"]}}
        assert mark_of(tree, "b", "c", 1) == f"{path}:4"

    def test_a_yml_file_works(self, tmp_path: Path) -> None:
        path = tmp_path / "a.yml"
        path.write_text("a: {b: é}", encoding="utf-8")
        assert to_plain(load_nodes(path)) == {"a": {"b": "é"}}


class TestMarks:
    def test_blocks_are_marked_at_their_key_and_scalars_where_they_stand(self) -> None:
        tree = parse_nodes("a:\n\n  b:\n    - c: 1\n    - 2\n  d:\n", "x.yaml")
        assert mark_of(tree, "a") == "x.yaml:1"
        assert mark_of(tree, "a", "b") == "x.yaml:3"
        assert mark_of(tree, "a", "b", 0) == "x.yaml:4"
        assert mark_of(tree, "a", "b", 1) == "x.yaml:5"
        assert mark_of(tree, "a", "d") == "x.yaml:6"
        assert tree.block("a").key_marks["b"].column == 3

    def test_an_alias_keeps_the_marks_of_its_anchor_and_its_key_those_of_the_alias(self) -> None:
        tree = parse_nodes("a: &a\n  x: 1\nb: &n 5\nc: *a\nd: *n\n", "x.yaml")
        assert mark_of(tree, "c", "x") == "x.yaml:2"
        assert mark_of(tree, "d") == "x.yaml:3"
        assert str(tree.key_marks["d"]) == "x.yaml:5"

    def test_a_merged_key_keeps_its_mark(self) -> None:
        tree = parse_nodes("a: &a\n  x: 1\n  y: 2\nb:\n  <<: *a\n  y: 3\n", "x.yaml")
        assert mark_of(tree, "b", "x") == "x.yaml:2"
        assert str(tree.block("b").key_marks["x"]) == "x.yaml:2"
        assert mark_of(tree, "b", "y") == "x.yaml:6"


class TestMerges:
    def test_explicit_keys_win_before_and_after_the_merge(self) -> None:
        tree = parse_nodes("a: &a {x: 1, y: 2, z: 3}\nb: {y: 9, <<: *a, z: 8}", "x.yaml")
        assert to_plain(tree)["b"] == {"x": 1, "y": 9, "z": 8}

    def test_of_a_list_the_first_wins(self) -> None:
        tree = parse_nodes("a: &a {x: 1, y: 2}\nb: &b {x: 3, z: 4}\nc: {<<: [*a, *b]}", "x.yaml")
        assert to_plain(tree)["c"] == {"x": 1, "y": 2, "z": 4}

    def test_merges_of_merges(self) -> None:
        tree = parse_nodes("a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, x: 3}", "x.yaml")
        assert to_plain(tree)["c"] == {"x": 3, "y": 2}

    def test_only_blocks_can_be_merged(self) -> None:
        assert tells(refusal("a: &a [1]\nb:\n  <<: *a"), "x.yaml:3", "<<", "blocks")


class TestRefusals:
    """The rows of the robustness matrix that concern the text itself."""

    def test_tab(self) -> None:
        assert tells(refusal("a:\n\tb: 1"), "x.yaml:2", "tab", "indentation")
        assert refusal("a:\n  b: 1\n\tc: 2").startswith("x.yaml:3: got a tab")

    def test_unclosed_quote(self) -> None:
        assert tells(refusal("a: 1\nb: 'x\nc: 2\n"), "x.yaml:2", "opened", "'x'")
        assert tells(refusal('a: "x\n'), "x.yaml:1", "quote", "opened")

    def test_unclosed_bracket(self) -> None:
        message = refusal("a: [1, 2\nb: 3\n")
        assert tells(message, "x.yaml:2", "YAML", "','", "']'")
        assert "begins in line 1" in message

    def test_colon_in_text(self) -> None:
        assert tells(refusal("a: b: c"), "quote", "text", "contains")
        assert tells(refusal("a: @b"), "quote", "begins", "character")

    def test_two_documents(self) -> None:
        assert tells(refusal("a: 1\n---\nb: 2"), "x.yaml:2", "second", "document")

    def test_nul(self) -> None:
        assert tells(refusal("a: 1\nb: \x00"), "x.yaml:2", "U+0000", "YAML")

    def test_non_utf8(self, tmp_path: Path) -> None:
        path = tmp_path / "a.yaml"
        path.write_bytes(b"a: 1\nb: caf\xe9\n")
        assert tells(file_refusal(path), "a.yaml:2", "0xe9", "UTF-8")

    def test_duplicate_key(self) -> None:
        assert tells(refusal("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3"), "x.yaml:5", "'c'", "3")

    def test_duplicate_anchor(self) -> None:
        assert tells(refusal("a: &a 1\nb: &a 2"), "x.yaml:2", "anchor", "1")

    @pytest.mark.parametrize(
        "tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!!python/tuple", "!foo", "!!set", "!!binary"]
    )
    @pytest.mark.parametrize("value", ["x", "[x]", "{x: 1}"])
    def test_tags_that_are_not_plain_values(self, tag: str, value: str) -> None:
        message = refusal(f"a: 1\nb: {tag} {value}")
        assert tells(message, "x.yaml:2", tag, "allowed")

    def test_wrong_standard_tags(self) -> None:
        assert tells(refusal("a: !!int x"), "x.yaml:1", "'x'", "value")
        assert tells(refusal("a: " + "9" * 5000), "value", "kind")

    def test_cyclic_alias(self) -> None:
        assert tells(refusal("a: &a\n  b: [*a]"), "x.yaml:2", "*a", "cycle")

    def test_unknown_alias(self) -> None:
        assert tells(refusal("norm: &normalize 1\nb: *normalise"), "x.yaml:2", "anchor", "'normalize'")

    def test_a_key_that_is_no_word(self) -> None:
        assert tells(refusal("? [a]\n: 2"), "x.yaml:1", "block", "list")

    @pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "---\n", "null\n"])
    def test_empty(self, text: str) -> None:
        assert tells(refusal(text), "x.yaml:1", "sections", "dataset")

    def test_not_a_block(self) -> None:
        assert tells(refusal("- 1"), "x.yaml:1", "block", "sections")
        assert tells(refusal("hello"), "x.yaml:1", "'hello'", "sections")

    def test_missing_file_names_near_ones(self, tmp_path: Path) -> None:
        (tmp_path / "res50.yaml").touch()
        assert tells(file_refusal(tmp_path / "res5O.yaml"), "res5O.yaml", "file", "'res50.yaml'")
        assert "does not exist either" in file_refusal(tmp_path / "no" / "x.yaml")

    def test_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a.yml").mkdir()
        assert tells(file_refusal(tmp_path / "a.yml"), "a.yml", "folder", "YAML")

    def test_device(self) -> None:
        assert "got a device or pipe" in file_refusal(Path("/dev/zero"))

    def test_huge_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.yaml"
        with path.open("wb") as file:
            file.truncate(MAX_BYTES + 1)
        assert tells(file_refusal(path), "a.yaml", "8", "MiB")


class TestBombs:
    """Bounds are counted in values and lines read, not in seconds: whatever is refused early costs nothing later."""

    @pytest.mark.parametrize("one", ["[", "{a: ", "- ", "? "])
    def test_3000_levels_on_one_line(self, one: str) -> None:
        message = refusal("a: " + one * 3000 if one in "[{a: " else one * 3000)
        assert tells(message, "x.yaml:1", MAX_DEPTH, "nesting")

    def test_3000_levels_of_indentation(self) -> None:
        text = "\n".join(" " * level + "a:" for level in range(3000))
        assert tells(refusal(text), f"x.yaml:{MAX_DEPTH + 1}", MAX_DEPTH, "nesting")

    def test_nesting_through_aliases(self) -> None:
        nested = "[" * 60 + "]" * 60
        deep = "[" * 60 + "*a" + "]" * 60
        assert tells(refusal(f"a: &a {nested}\nb: {deep}"), "levels", "nesting", "written")

    def test_an_alias_bomb_is_refused_where_it_passes_the_limit(self) -> None:
        lines = ["k0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        lines += [f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
        # 10 values a line more: 11, 111, 1,111, 11,111, and line 5 is the first beyond the limit
        assert 11_111 < MAX_NODES < 111_111
        assert tells(refusal("\n".join(lines)), "x.yaml:5", f"{MAX_NODES:,}", "aliases")

    def test_a_bomb_of_blocks(self) -> None:
        lines = ["k0: &a0 {x: 1}"] + [f"k{n}: &a{n} {{a: *a{n - 1}, b: *a{n - 1}, c: *a{n - 1}}}" for n in range(1, 40)]
        assert "an alias bomb?" in refusal("\n".join(lines))

    def test_a_bomb_of_merges(self) -> None:
        wide = ", ".join(f"k{n}: 1" for n in range(500))
        merges = ", ".join(["*a"] * 101)
        assert "an alias bomb?" in refusal(f"a: &a {{{wide}}}\nb: {{<<: [{merges}]}}")

    def test_a_wide_file(self) -> None:
        assert "got more than" in refusal("a: [" + "a," * (MAX_NODES + 1) + "]")

    def test_aliases_share_one_node_until_one_place_changes(self) -> None:
        tree = parse_nodes("a: &a [1, 2, 3]\nb: [*a, *a]", "x.yaml")
        both = tree.get("b")
        assert isinstance(both, SequenceNode)
        assert both.items[0] is both.items[1]


class TestIncludes:
    def test_relative_to_the_including_file_with_marks_of_the_included_one(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "main.yaml").write_text("net: !include sub/net.yaml\nb: 2\n")
        (tmp_path / "sub" / "net.yaml").write_text("# the net\n- name: x\n  type: !include type.yaml\n")
        (tmp_path / "sub" / "type.yaml").write_text("resnet18\n")
        tree = load_nodes(tmp_path / "main.yaml")
        assert to_plain(tree) == {"net": [{"name": "x", "type": "resnet18"}], "b": 2}
        assert mark_of(tree, "net", 0, "name") == f"{tmp_path}/sub/net.yaml:2"
        assert mark_of(tree, "net", 0, "type") == f"{tmp_path}/sub/type.yaml:1"

    def test_merged_and_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "base.yaml").write_text("trainer:\n  max_epoch: 100\n  test_freq: 5\nnet:\n- {name: a, type: b}\n")
        (tmp_path / "main.yaml").write_text(
            "<<: !include base.yaml\noverwrite@:\n  trainer.max_epoch: 3\n  net.a.type: c\n  trainer.clip_norm: 1e0\n"
        )
        tree = load_nodes(tmp_path / "main.yaml")
        assert to_plain(tree) == {
            "trainer": {"max_epoch": 3, "test_freq": 5, "clip_norm": 1.0},
            "net": [{"name": "a", "type": "c"}],
        }
        assert mark_of(tree, "trainer", "max_epoch") == f"{tmp_path}/main.yaml:3"
        assert mark_of(tree, "trainer", "test_freq") == f"{tmp_path}/base.yaml:3"

    def test_cycles_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text("x: !include b.yaml\n")
        (tmp_path / "b.yaml").write_text("\ny: !include a.yaml\n")
        message = file_refusal(tmp_path / "a.yaml")
        assert message.startswith("b.yaml:2: !include")
        assert tells(message, "a.yaml", "->", "b.yaml", "->", "a.yaml")

    def test_a_missing_file_is_reported_where_it_is_included(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text("\nx: !include b.yaml\n")
        assert tells(file_refusal(tmp_path / "a.yaml"), "a.yaml:2", "include", "b.yaml")

    def test_a_fault_in_the_included_file_names_that_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text("x: !include b.yaml\n")
        (tmp_path / "b.yaml").write_text("y: 1\ny: 2\n")
        assert tells(file_refusal(tmp_path / "a.yaml"), "b.yaml:2", "'y'", "1")

    def test_includes_count_towards_the_limit(self, tmp_path: Path) -> None:
        (tmp_path / "b0.yaml").write_text("[1, 2, 3, 4, 5, 6, 7, 8, 9, 0]")
        for n in range(1, 6):
            (tmp_path / f"b{n}.yaml").write_text("[" + ", ".join([f"!include b{n - 1}.yaml"] * 10) + "]")
        (tmp_path / "a.yaml").write_text("x: !include b5.yaml")
        assert file_refusal(tmp_path / "a.yaml").startswith("b4.yaml:1: got more than")

    def test_overwrite_must_be_a_block(self) -> None:
        assert tells(refusal("overwrite@: 3\na: 1"), "x.yaml:1", "overwrite@", "dotted")
        assert to_plain(parse_nodes("overwrite@:\na: 1", "x.yaml")) == {"a": 1}

    def test_overwrite_names_what_it_cannot_reach(self) -> None:
        assert tells(refusal("a: 1\noverwrite@:\n  a.b: 2"), "x.yaml:3", "a.b", "1")
