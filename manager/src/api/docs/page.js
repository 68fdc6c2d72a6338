// Makes the page of the document. All that is shown is set as text: nothing in the document is ever run.
"use strict";

const METHODS = ["get", "post", "put", "patch", "delete"];

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

// Text in which `code` stands between backquotes, and a blank line between paragraphs.
function prose(text) {
  return (text || "").split(/\n\n+/).filter(Boolean).map((paragraph) =>
    element("p", {}, ...paragraph.split("`").map((part, number) =>
      number % 2 ? element("code", {}, part) : document.createTextNode(part))));
}

function sample(text) {
  const button = element("button", { type: "button" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      // Browsers give the clipboard to pages that came over TLS, or from this machine.
      button.textContent = "Select it and copy";
    }
  });
  return element("div", { class: "sample" }, element("pre", { tabindex: "0" }, text), button);
}

function json(value) {
  return JSON.stringify(value, null, 2);
}

// The page of one document.
class Page {
  constructor(api) {
    this.api = api;
  }

  // What stands where a reference points to, with what stands beside the reference.
  follow(value) {
    let found = value;
    for (let steps = 0; found && found.$ref && steps < 10; steps += 1) {
      const { $ref, ...beside } = found;
      const target = $ref.slice(2).split("/")
        .reduce((at, key) => at[key.replace(/~1/g, "/").replace(/~0/g, "~")], this.api);
      found = { ...target, ...beside };
    }
    return found;
  }

  // What a value may be, in one line.
  type(schema) {
    const found = this.follow(schema);
    if (found.enum) return found.enum.map((word) => json(word)).join(" | ");
    if (found.const !== undefined) return json(found.const);
    const choice = found.oneOf || found.anyOf;
    if (choice) return [...new Set(choice.map((one) => this.type(one)))].join(" | ");
    const types = [].concat(found.type || (found.properties || found.allOf ? "object" : "anything"));
    let text = types.join(" | ");
    if (types.includes("array") && found.items) text = `array of ${this.type(found.items)}`;
    if (found.format) text += `, ${found.format}`;
    const bounds = [
      ["minimum", "at least"], ["maximum", "at most"], ["minItems", "items at least"], ["maxItems", "items at most"],
      ["minLength", "characters at least"], ["maxLength", "characters at most"],
    ];
    for (const [key, words] of bounds) if (found[key] !== undefined) text += `, ${words} ${found[key]}`;
    return text;
  }

  // The fields of an object or of the objects in it; null where there are none.
  fields(schema, depth = 0) {
    const found = this.follow(schema);
    if (depth > 6) return null;
    if (found.allOf) return this.parts(found.allOf, depth);
    const choice = (found.oneOf || found.anyOf || []).filter((one) => this.follow(one).type !== "null");
    if (choice.length) return this.parts(choice, depth);
    if (found.items) return this.fields(found.items, depth);
    if (!found.properties) return null;
    const list = element("dl", {});
    for (const [name, property] of Object.entries(found.properties)) {
      list.append(...this.field(name, property, (found.required || []).includes(name), depth));
    }
    return list;
  }

  parts(schemas, depth) {
    const made = schemas.map((one) => this.fields(one, depth)).filter(Boolean);
    return made.length ? element("div", {}, ...made) : null;
  }

  field(name, schema, required, depth) {
    const found = this.follow(schema);
    const inner = this.fields(schema, depth + 1);
    const named = (found.oneOf || []).map((one) => this.follow(one)).find((one) => one.description);
    const rules = [];
    if (found.default !== undefined) rules.push(`default ${json(found.default)}`);
    if (found.pattern) rules.push(`as ${found.pattern}`);
    return [
      element("dt", {}, element("span", { class: "field" }, name), " ",
        element("span", { class: "faint" }, `${this.type(schema)}${required ? "" : ", optional"}`)),
      element("dd", {}, ...prose(found.description || (named && named.description)),
        rules.length ? element("p", { class: "faint" }, element("code", {}, rules.join(", "))) : null,
        inner ? element("details", {}, element("summary", {}, "fields"), inner) : null),
    ];
  }

  // A command that asks for it.
  curl(method, path, operation) {
    let target = path;
    const query = [];
    const lines = [];
    for (const parameter of (operation.parameters || []).map((one) => this.follow(one))) {
      const example = this.exampleOf(parameter);
      if (parameter.in === "path") target = target.replace(`{${parameter.name}}`, example ?? parameter.name.toUpperCase());
      else if (parameter.in === "query" && example !== undefined) query.push(`${parameter.name}=${example}`);
    }
    const url = new URL(`.${target}${query.length ? `?${query.join("&")}` : ""}`, document.baseURI).href;
    lines.push(`curl -s '${url}'`);
    if (method !== "get") lines[0] = `curl -s -X ${method.toUpperCase()} '${url}'`;
    if (operation.security && operation.security.length) lines.push(`-H "Authorization: Bearer $TOKEN"`);
    const [body] = this.examples(operation.requestBody);
    if (body) {
      lines.push("-H 'Content-Type: application/json'");
      lines.push(`-d '${JSON.stringify(body.value).replaceAll("'", "'\\''")}'`);
    }
    return lines.join(" \\\n  ");
  }

  exampleOf(parameter) {
    const schema = this.follow(parameter.schema || {});
    return [parameter.example, ...(schema.examples || []), ...(schema.enum || [])].find((one) => one !== undefined);
  }

  // The examples of a body: { summary, value } each.
  examples(body) {
    const content = Object.values((this.follow(body) || {}).content || {})[0] || {};
    if (content.example !== undefined) return [{ summary: "Example", value: content.example }];
    return Object.values(content.examples || {}).map((one) => this.follow(one));
  }

  response(status, response) {
    const found = this.follow(response);
    const [kind, content] = Object.entries(found.content || {})[0] || [null, {}];
    const problem = kind === "application/problem+json";
    const made = element("details", {},
      element("summary", {}, element("strong", {}, status), " ", ...prose(found.description).flatMap((p) => [...p.childNodes])));
    for (const [name, header] of Object.entries(found.headers || {})) {
      made.append(element("p", {}, "Header ", element("code", {}, name), `: `, ...prose(header.description).flatMap((p) => [...p.childNodes])));
    }
    if (kind) made.append(element("p", { class: "faint" }, kind));
    // Those of problems are the same everywhere: see the top.
    const fields = content.schema && !problem ? this.fields(content.schema) : null;
    if (fields) made.append(fields);
    for (const one of this.examples(found)) {
      made.append(sample(typeof one.value === "string" ? one.value : json(one.value)));
    }
    return made;
  }

  operation(method, path, operation) {
    const made = element("article", { id: operation.operationId },
      element("h3", {}, element("span", { class: `method ${method}` }, method.toUpperCase()), " ",
        element("a", { class: "path", href: `#${operation.operationId}` }, path)),
      element("p", {}, element("strong", {}, operation.summary || "")),
      ...prose(operation.description), sample(this.curl(method, path, operation)));
    const parameters = (operation.parameters || []).map((one) => this.follow(one));
    if (parameters.length) {
      const list = element("dl", {});
      for (const one of parameters) {
        list.append(...this.field(`${one.name} (${one.in})`, { ...this.follow(one.schema), description: one.description }, one.required, 0));
      }
      made.append(element("h4", {}, "Parameters"), list);
    }
    if (operation.requestBody) {
      const content = Object.values(this.follow(operation.requestBody).content)[0];
      const fields = this.fields(content.schema);
      made.append(element("h4", {}, "Body"));
      if (fields) made.append(fields);
      for (const one of this.examples(operation.requestBody)) {
        made.append(element("details", {}, element("summary", {}, `Example: ${one.summary}`), sample(json(one.value))));
      }
    }
    made.append(element("h4", {}, "Answers"));
    for (const [status, one] of Object.entries(operation.responses)) made.append(this.response(status, one));
    return made;
  }

  // Every kind of problem: its name, status and title.
  problems() {
    const body = element("tbody", {});
    for (const [kind, response] of Object.entries((this.api.components || {}).responses || {})) {
      const [one] = this.examples(response);
      if (!one || !one.value.type) continue;
      body.append(element("tr", {}, element("td", {}, element("code", {}, kind)),
        element("td", {}, String(one.value.status)), element("td", {}, one.value.title)));
    }
    const head = ["kind", "status", "title"].map((name) => element("th", { scope: "col" }, name));
    return element("table", {}, element("thead", {}, element("tr", {}, ...head)), body);
  }

  write(contents, main) {
    document.getElementById("version").textContent = this.api.info.version;
    main.append(...prose(this.api.info.description));
    const schemes = Object.values((this.api.components || {}).securitySchemes || {});
    main.append(element("h2", { id: "authorise" }, "How to authorise"), ...schemes.flatMap((one) => prose(one.description)),
      sample(`curl -s -H "Authorization: Bearer $TOKEN" '${new URL("./keys", document.baseURI).href}'`));
    main.append(element("h2", { id: "problems" }, "Problems"), this.problems());
    for (const tag of this.api.tags || []) {
      const list = element("ul", {});
      contents.append(element("h2", {}, tag.name), list);
      main.append(element("h2", {}, tag.name), ...prose(tag.description));
      for (const [path, item] of Object.entries(this.api.paths)) {
        for (const method of METHODS.filter((one) => item[one] && (item[one].tags || []).includes(tag.name))) {
          main.append(this.operation(method, path, item[method]));
          list.append(element("li", {}, element("a", { href: `#${item[method].operationId}` },
            element("span", { class: `method ${method}` }, method.toUpperCase()), ` ${path}`)));
        }
      }
    }
  }
}

async function start() {
  const state = document.getElementById("state");
  try {
    const response = await fetch(new URL("./openapi.json", document.baseURI));
    if (!response.ok) throw new Error(`openapi.json was answered with ${response.status}`);
    new Page(await response.json()).write(document.getElementById("contents"), document.getElementById("main"));
    state.remove();
    // What the address names was not there before.
    const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (named) named.scrollIntoView();
  } catch (error) {
    state.textContent = `The document cannot be shown: ${error.message}`;
  }
}

start();
