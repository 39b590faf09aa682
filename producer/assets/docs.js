// Shows the API's document. A file of its own, because nothing inline may run here.
"use strict";
SwaggerUIBundle({
  url: "/v1/openapi.json",
  dom_id: "#viewer",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  docExpansion: "list",
  // No look-up of the document at a validator elsewhere.
  validatorUrl: null,
});
