import pytest

from millis_server.chat import ChatTemplates, TemplateFailed

MESSAGES = [{"role": "user", "content": "5 < 6 & 'so'"}]


PLAIN = (
    "{{ bos_token }}{% for message in messages %}\n  {{ message.role }}: {{ message['content'] | trim }}\n"
    "{% endfor %}\n{% if add_generation_prompt %}assistant:{% endif %}{{ {'a': '<ü>'} | tojson }}"
)
FOR_TRAINING = (
    "{% set said = 'x' %}{% for message in messages %}\n  {% generation %}\n{% set said = message.content %}\n"
    "<{{ said }}>\n  {% endgeneration %}\n{{ said }}{% endfor %}"
)


@pytest.mark.parametrize("template", [PLAIN, FOR_TRAINING])
def test_a_template_is_rendered_as_transformers_does(template):
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    theirs, _ = transformers.render_jinja_template(
        conversations=[MESSAGES], chat_template=template, add_generation_prompt=True, bos_token="<s>"
    )
    assert ChatTemplates().render(template, MESSAGES, {"bos_token": "<s>"}) == theirs[0]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ raise_exception('only user messages') }}", "only user messages"),
        ("{{ messages[0].__class__.__mro__ }}", "access to attribute '__class__' of 'dict' object is unsafe."),
        ("{% for", "unexpected 'end of template'"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ 1 // 0 }}", "integer division or modulo by zero"),
        ("{{ '{0} {1}'.format(1) }}", "tuple index out of range"),
        ("{% macro deeper() %}{{ deeper() }}{% endmacro %}{{ deeper() }}", "maximum recursion depth exceeded"),
        ("{% generation %}", "Unexpected end of template. Jinja was looking for the following tags: 'endgeneration'."),
        ("{% for i in range(99999) %}{{ '%1000s' | format('') }}{% endfor %}", "it makes more than 4194304"),
    ],
)
def test_a_template_that_refuses_breaks_or_means_harm_is_told_in_one_line(template, problem):
    with pytest.raises(TemplateFailed) as caught:
        ChatTemplates().render(template, MESSAGES, {})
    assert str(caught.value).startswith(problem)
