"""Small dumps in the real format, made in code."""

from html import escape

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" \
xml:lang="{language}">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>{language}wiki</dbname>
    <base>https://{language}.wikipedia.org/wiki/Main_Page</base>
    <generator>MediaWiki 1.43</generator>
    <case>first-letter</case>
    <namespaces>
{namespaces}
    </namespaces>
  </siteinfo>
"""
ENGLISH = {
    -2: "Media",
    -1: "Special",
    0: "",
    1: "Talk",
    2: "User",
    4: "Wikipedia",
    6: "File",
    10: "Template",
    14: "Category",
    100: "Portal",
    2302: "Gadget definition",
}


def head(language="en", names=ENGLISH):
    cases = {n: "case-sensitive" if n == 2302 else "first-letter" for n in names}
    spaces = [
        f'      <namespace key="{n}" case="{cases[n]}">{escape(name)}</namespace>'
        if name
        else f'      <namespace key="{n}" case="{cases[n]}" />'
        for n, name in names.items()
    ]
    return HEAD.format(language=language, namespaces="\n".join(spaces))


def page(page_id, title, text="", ns=0, redirect=None, model="wikitext"):
    """Returns the XML of a page."""
    to = "" if redirect is None else f'    <redirect title="{escape(redirect)}" />\n'
    return f"""  <page>
    <title>{escape(title)}</title>
    <ns>{ns}</ns>
    <id>{page_id}</id>
{to}    <revision>
      <id>{page_id}9</id>
      <timestamp>2026-01-01T00:00:00Z</timestamp>
      <comment>about &lt;page&gt;</comment>
      <model>{model}</model>
      <format>text/x-wiki</format>
      <text>{escape(text)}</text>
    </revision>
  </page>
"""


def dump(pages, **settings):
    """Returns a whole dump."""
    return head(**settings) + "".join(pages) + "</mediawiki>\n"
