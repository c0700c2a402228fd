"""Gemma's chat format as a Jinja template, for programs that format conversations themselves.

It writes what `chat_ids` encodes. What a template cannot do is to encode control pieces in a content as text: who
encodes the result reads them as control tokens.

Source: Gemma 2 report, tables 4 and 5.
"""

CHAT_TEMPLATE = r"""
{{- bos_token }}
{%- set system = '' %}
{%- set turns = messages %}
{%- if messages and messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim ~ '\n\n' %}
    {%- set turns = messages[1:] %}
{%- endif %}
{%- for message in turns %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {%- if role != ['user', 'model'][loop.index0 % 2] %}
        {{- raise_exception('roles: expected user and model (or assistant) to take turns, the user first') }}
    {%- endif %}
    {%- if message['content'] is not string %}
        {{- raise_exception('content: expected text') }}
    {%- endif %}
    {{- '<start_of_turn>' ~ role ~ '\n' }}
    {%- if loop.first %}
        {{- system }}
    {%- endif %}
    {{- message['content'] | trim ~ '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\n' }}
{%- endif %}
""".strip()
"""Its variables are those of transformers: messages, bos_token, add_generation_prompt, raise_exception(message)."""
